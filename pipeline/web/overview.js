// The overview of all faces, or of one split: balance, mean distributions, entropy, calibration.

const overview = document.getElementById('overview');

function showOverview(chosen) {
  // on a phone a narrower drawing rather than smaller letters
  FRAME.width = Math.max(300, Math.min(624, overview.clientWidth - 36));
  const of = [];
  for (let row = 0; row < N; row++) if (chosen === null || split[row] === chosen) of.push(row);
  const labelled = of.filter((row) => label[row] >= 0);
  const calibration = calibrationOf(labelled);
  overview.replaceChildren(
    figures(of, labelled, calibration),
    part('Class balance', 'Faces by label, by most probable class, and the sum of their distributions.', balance(of)),
    part(
      'Mean distribution by label',
      'Percent; a row is the faces of one label, framed where the class is the label.',
      heatMap(of),
    ),
    part(
      'Entropy',
      `How undecided a distribution is, in nats: 0 is certain, ${MOST_NATS.toFixed(2)} (ln ${C}) is all classes alike.`,
      histogram(of),
    ),
    part('Calibration', calibrationNote(labelled), reliability(labelled, calibration)),
  );
}

function part(title, note, content) {
  return element('section', {
    class: 'part',
    'aria-label': title,
    children: [element('h2', {text: title}), element('p', {class: 'quiet', text: note}), content],
  });
}

function mean(of, value) {
  return of.length ? of.reduce((sum, row) => sum + value(row), 0) / of.length : NaN;
}

function figures(of, labelled, {error}) {
  const agree = mean(labelled, (row) => (top1[row] === label[row] ? 1 : 0));
  const doubtful = of.filter((row) => isDoubtful(row, 'any')).length;
  const pairs = [
    ['faces', whole(of.length)],
    ['with a label', whole(labelled.length)],
    ['agree with the label', labelled.length ? `${percent(agree, 1)} %` : '–'],
    ['mean entropy', of.length ? `${mean(of, (row) => nats[row]).toFixed(3)} nats` : '–'],
    ['calibration error', labelled.length ? `${percent(error, 2)} %` : '–'],
    ['doubtful', of.length ? `${whole(doubtful)} (${percent(doubtful / of.length)} %)` : '–'],
  ];
  return element('dl', {
    class: 'figures',
    children: pairs.map(([name, text]) =>
      element('div', {children: [element('dt', {text: name}), element('dd', {text})]}),
    ),
  });
}

function balance(of) {
  const count = {label: new Float64Array(C), top: new Float64Array(C), sum: new Float64Array(C)};
  let unlabelled = 0;
  for (const row of of) {
    if (label[row] < 0) unlabelled++;
    else count.label[label[row]]++;
    count.top[top1[row]]++;
    for (let k = 0; k < C; k++) count.sum[k] += canonical[row * C + k];
  }
  const most = Math.max(1, unlabelled, ...count.label, ...count.top, ...count.sum);
  const columns = [
    ['label', 'votes'],
    ['top', 'teacher'],
    ['sum', 'student'],
  ];
  const cell = (value, kind) => {
    const fill = element('span', {class: `fill ${kind}`});
    fill.style.width = `${((100 * value) / most).toFixed(2)}%`;
    return element('td', {
      children: [
        element('span', {class: 'track', children: [fill]}),
        element('span', {class: 'value', text: whole(Math.round(value))}),
      ],
    });
  };
  const lines = classes.map((name, k) =>
    element('tr', {
      children: [element('th', {scope: 'row', text: name}), ...columns.map(([key, kind]) => cell(count[key][k], kind))],
    }),
  );
  if (unlabelled)
    lines.push(
      element('tr', {
        children: [
          element('th', {scope: 'row', text: 'no label'}),
          cell(unlabelled, 'votes'),
          element('td'),
          element('td'),
        ],
      }),
    );
  const head = ['class', 'label', 'most probable', 'sum of shares'].map((text) => element('th', {scope: 'col', text}));
  return scrolling(
    'Class balance',
    element('table', {
      class: 'comparison balance',
      children: [element('thead', {children: [element('tr', {children: head})]}), element('tbody', {children: lines})],
    }),
  );
}

function heatMap(of) {
  const line = (name, these) => {
    const cells = classes.map((other, k) => {
      const share = mean(these, (row) => canonical[row * C + k]);
      const cell = element('td', {
        text: percent(share, 1),
        class: name === other ? 'own' : undefined,
        title: `${name} → ${other}: ${percent(share, 2)} %`,
      });
      if (Number.isFinite(share)) cell.style.setProperty('--share', `${(100 * share).toFixed(1)}%`);
      cell.classList.toggle('strong', share > 0.58);
      cell.classList.toggle('full', share > 0.92);
      return cell;
    });
    return element('tr', {
      children: [
        element('th', {scope: 'row', children: [name, element('span', {class: 'quiet', text: whole(these.length)})]}),
        ...cells,
      ],
    });
  };
  const lines = classes.map((name, k) =>
    line(
      name,
      of.filter((row) => label[row] === k),
    ),
  );
  const unlabelled = of.filter((row) => label[row] < 0);
  if (unlabelled.length) lines.push(line('no label', unlabelled));
  const all = line('all', of);
  const head = [
    element('th', {scope: 'col', text: 'label, faces'}),
    ...classes.map((text) => element('th', {scope: 'col', text})),
  ];
  const table = element('table', {
    class: 'heat',
    children: [
      element('thead', {children: [element('tr', {children: head})]}),
      element('tbody', {children: lines}),
      element('tfoot', {children: [all]}),
    ],
  });
  table.style.minWidth = `${9.6 + 4.3 * C}em`; // room for "happiness"
  return scrolling('Mean distribution by label', table);
}

// --- charts: x and y are 0 to 1 inside the frame -----------------------------------------------------------------

const FRAME = {left: 52, right: 24, top: 34, bottom: 46, width: 624, height: 330};
const X = (x) => FRAME.left + x * (FRAME.width - FRAME.left - FRAME.right);
const Y = (y) => FRAME.height - FRAME.bottom - y * (FRAME.height - FRAME.top - FRAME.bottom);

function chart(name, {xTitle, yTitle, xTicks, yTicks, children}) {
  const axes = [
    ...yTicks.map(([y]) => drawn('line', {class: 'grid', x1: X(0), x2: X(1), y1: Y(y), y2: Y(y)})),
    ...yTicks.map(([y, text]) => drawn('text', {class: 'tick y', x: X(0) - 8, y: Y(y), text})),
    ...xTicks.map(([x, text]) => drawn('text', {class: 'tick x', x: X(x), y: Y(0) + 17, text})),
    drawn('line', {class: 'axis', x1: X(0), x2: X(1), y1: Y(0), y2: Y(0)}),
    drawn('text', {class: 'tick x title', x: X(0.5), y: FRAME.height - 6, text: xTitle}),
    drawn('text', {class: 'tick', x: 4, y: 14, text: yTitle}),
  ];
  return drawn('svg', {
    class: 'chart',
    viewBox: `0 0 ${FRAME.width} ${FRAME.height}`,
    role: 'img',
    'aria-label': name,
    children: [...axes, ...children],
  });
}

const ENTROPY_BINS = 32;

function entropyCounts(of) {
  const counts = new Array(ENTROPY_BINS).fill(0);
  for (const row of of) counts[Math.min(ENTROPY_BINS - 1, Math.floor((nats[row] / MOST_NATS) * ENTROPY_BINS))]++;
  return counts;
}

// A round number of faces above `most`, with 1, 2 or 5 in front.
function roundAbove(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 5, 10].map((k) => k * power).find((value) => value >= most);
}

function histogram(of) {
  const counts = entropyCounts(of);
  const most = roundAbove(Math.max(...counts));
  const width = (X(1) - X(0)) / ENTROPY_BINS;
  const edge = (k) => ((k / ENTROPY_BINS) * MOST_NATS).toFixed(2);
  const children = counts.map((count, k) =>
    drawn('rect', {
      class: 'column',
      x: X(k / ENTROPY_BINS) + 1,
      width: width - 2,
      y: Y(count / most),
      height: Y(0) - Y(count / most),
      'data-count': count,
      title: `${edge(k)} to ${edge(k + 1)} nats: ${whole(count)} faces`,
    }),
  );
  const sorted = Float64Array.from(of, (row) => nats[row]).sort();
  const median = quantile(sorted, 0.5);
  if (of.length) {
    const x = X(median / MOST_NATS);
    children.push(
      drawn('line', {class: 'marker', x1: x, x2: x, y1: Y(0), y2: Y(1)}),
      drawn('text', {class: 'tick', x: x + 5, y: Y(1) - 6, text: `median ${median.toFixed(2)}`}),
    );
  }
  const xTicks = Array.from({length: 5}, (_, k) => [k / 4, ((MOST_NATS * k) / 4).toFixed(2)]);
  const yTicks = [0, 0.5, 1].map((y) => [y, whole(y * most)]);
  const picture = chart(`Entropy of ${whole(of.length)} faces, median ${median.toFixed(2)} nats`, {
    xTitle: 'entropy, nats',
    yTitle: 'faces',
    xTicks,
    yTicks,
    children,
  });
  const shares = [
    ['least', 0],
    ['5 %', 0.05],
    ['25 %', 0.25],
    ['median', 0.5],
    ['75 %', 0.75],
    ['95 %', 0.95],
    ['most', 1],
  ];
  const lines = [
    element('tr', {
      children: [
        element('th', {scope: 'row', text: 'quantile'}),
        ...shares.map(([text]) => element('th', {scope: 'col', text})),
      ],
    }),
    element('tr', {
      children: [
        element('th', {scope: 'row', text: 'nats'}),
        ...shares.map(([, share]) => element('td', {text: quantile(sorted, share).toFixed(3)})),
      ],
    }),
  ];
  return element('div', {
    children: [picture, scrolling('Quantiles of the entropy', element('table', {class: 'plain', children: lines}))],
  });
}

// Of sorted numbers, interpolated linearly between neighbours.
function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  return sorted[below] + (place - below) * (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]);
}

// Faces by the probability of their most probable class, in bins (k / B, (k + 1) / B] as fer evaluate has them.
function calibrationOf(labelled) {
  const B = data.bins;
  const bins = Array.from({length: B}, () => ({faces: 0, right: 0, confidence: 0}));
  for (const row of labelled) {
    const confidence = canonical[row * C + top1[row]];
    const bin = bins[Math.min(Math.max(Math.ceil(confidence * B) - 1, 0), B - 1)];
    bin.faces++;
    bin.right += top1[row] === label[row] ? 1 : 0;
    bin.confidence += confidence;
  }
  const gap = bins.reduce((sum, bin) => sum + Math.abs(bin.right - bin.confidence), 0);
  return {bins, error: labelled.length ? gap / labelled.length : NaN};
}

function calibrationNote(labelled) {
  const note =
    'Does a probability of 80 % come true four times in five? On the diagonal it does; ' +
    'below it, the distributions are too sure.';
  const seen = labelled.filter((row) => fold[row] === -1).length;
  if (!seen) return note;
  const of = `Of these ${whole(labelled.length)} faces the teacher was trained on ${whole(seen)}`;
  return `${note} ${of}: about them it looks better than it is.`;
}

function reliability(labelled, {bins, error}) {
  if (!labelled.length) return element('p', {class: 'notice', text: 'No labelled faces here.'});
  const B = bins.length;
  const most = Math.max(...bins.map((bin) => bin.faces));
  const filled = bins.map((bin, k) => ({...bin, k})).filter((bin) => bin.faces);
  const point = (bin) => [X(bin.confidence / bin.faces), Y(bin.right / bin.faces)];
  const said = (bin) => percent(bin.confidence / bin.faces, 1);
  const right = (bin) => percent(bin.right / bin.faces, 1);
  const range = (k) => `${percent(k / B)} to ${percent((k + 1) / B)} %`;
  const children = [
    ...filled.map((bin) =>
      drawn('rect', {
        class: 'share',
        x: X(bin.k / B) + 1,
        width: (X(1) - X(0)) / B - 2,
        y: Y((0.25 * bin.faces) / most),
        height: Y(0) - Y((0.25 * bin.faces) / most),
        title: `${range(bin.k)}: ${whole(bin.faces)} faces`,
      }),
    ),
    drawn('line', {class: 'diagonal', x1: X(0), y1: Y(0), x2: X(1), y2: Y(1)}),
    drawn('polyline', {class: 'curve', points: filled.map((bin) => point(bin).join(',')).join(' ')}),
    ...filled.map((bin) => {
      const [cx, cy] = point(bin);
      return drawn('circle', {
        class: 'point',
        cx,
        cy,
        r: 5,
        title: `${range(bin.k)}: said ${said(bin)} %, right ${right(bin)} % of ${whole(bin.faces)} faces`,
      });
    }),
  ];
  const ticks = [0, 0.2, 0.4, 0.6, 0.8, 1].map((share) => [share, percent(share)]);
  const picture = chart(
    `Calibration of ${whole(labelled.length)} labelled faces, expected error ${percent(error, 2)} %`,
    {
      xTitle: 'largest probability, % (columns: faces)',
      yTitle: 'right, %',
      xTicks: ticks,
      yTicks: ticks,
      children,
    },
  );
  const head = ['probability', 'faces', 'said, %', 'right, %'].map((text) => element('th', {scope: 'col', text}));
  const lines = filled.map((bin) =>
    element('tr', {
      children: [
        element('th', {scope: 'row', text: range(bin.k)}),
        ...[whole(bin.faces), said(bin), right(bin)].map((text) => element('td', {text})),
      ],
    }),
  );
  const table = element('table', {
    class: 'plain',
    children: [element('thead', {children: [element('tr', {children: head})]}), element('tbody', {children: lines})],
  });
  const summary = element('p', {
    id: 'ece',
    text: `Expected calibration error (ECE, ${B} bins): ${percent(error, 2)} %`,
  });
  return element('div', {
    children: [
      summary,
      picture,
      element('details', {
        children: [element('summary', {text: 'The same in numbers'}), scrolling('Calibration in numbers', table)],
      }),
    ],
  });
}
