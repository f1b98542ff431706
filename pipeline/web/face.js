// One face, large: its views' boxes drawn over it, what people, teacher and students say, every view's own answer.

const dialog = document.getElementById('face');
const DASHES = ['none', '7 3', '2 3', '9 3 2 3'];
let opened = null; // the row that the dialog shows

function face(row, boxes) {
  const side = data.crop;
  const picture = pictureOf(row);
  const inside = picture
    ? [drawn('image', {href: picture, width: side, height: side})]
    : [
        drawn('rect', {class: 'empty', width: side, height: side}),
        drawn('text', {
          class: 'empty-text',
          x: side / 2,
          y: side / 2,
          'font-size': side / 16,
          text: 'picture not embedded',
        }),
      ];
  const name = picture ? `The face ${data.ids[row]}` : `No picture of ${data.ids[row]}`;
  return drawn('svg', {
    class: 'large',
    viewBox: `0 0 ${side} ${side}`,
    role: 'img',
    'aria-label': name,
    children: [...inside, ...boxes],
  });
}

function boxOf(place, view) {
  const at = (place * V + view) * 4;
  return {
    top: viewBox[at],
    left: viewBox[at + 1],
    height: viewBox[at + 2],
    width: viewBox[at + 3],
    flip: viewFlip[place * V + view] === 1,
  };
}

function outline(place, view) {
  const {top, left, height, width} = boxOf(place, view);
  const at = {x: left, y: top, width, height};
  return drawn('g', {
    class: `view-box tone-${view % 7}`,
    'data-view': view,
    children: [
      drawn('rect', {class: 'halo', ...at}),
      drawn('rect', {class: 'box', ...at, 'stroke-dasharray': DASHES[Math.floor(view / 7) % DASHES.length]}),
      // along the upper edge, each at its own place: many boxes begin in the same corner
      drawn('text', {x: left + 3 + (0.88 * width * view) / V, y: top + 3, 'font-size': data.crop / 20, text: view + 1}),
    ],
  });
}

// A view as the network saw it, and its answer.
function tile(row, place, view) {
  const {top, left, height, width, flip} = boxOf(place, view);
  const p = sharesAt(viewDistribution, place * V + view);
  const picture = pictureOf(row);
  const children = picture
    ? [drawn('image', {href: picture, width: data.crop, height: data.crop})]
    : [drawn('rect', {class: 'empty', width: data.crop, height: data.crop})];
  // stretched to a square, as the network gets it
  const cut = drawn('svg', {
    viewBox: `${left} ${top} ${width} ${height}`,
    preserveAspectRatio: 'none',
    class: flip ? 'cut mirrored' : 'cut',
    'aria-hidden': 'true',
    children,
  });
  const distribution = bars();
  distribution.set(p, label[row]);
  const about = `${height} × ${width} at ${top}, ${left}${flip ? ', mirrored' : ''}`;
  const number = element('span', {class: `number tone-${view % 7}`, text: view + 1});
  return element('button', {
    type: 'button',
    class: 'tile',
    'data-view': view,
    'aria-pressed': 'false',
    'aria-label': `View ${view + 1}: ${told(p)}; ${about}`,
    children: [
      element('span', {class: 'frame', children: [cut]}),
      distribution.list,
      element('span', {
        class: 'caption',
        children: [
          element('span', {children: [number, ` ${flip ? 'mirrored' : 'as it is'}`]}),
          element('span', {class: 'quiet', text: `${height} × ${width} at ${top}, ${left}`}),
        ],
      }),
    ],
  });
}

// Who says what: columns of the comparison, each a distribution.
function voices(row) {
  const found = [];
  const counts = votesOf(row);
  const total = counts && counts.reduce((sum, count) => sum + count, 0);
  if (total > 0)
    found.push({
      name: 'people',
      detail: !wholeVotes ? 'shares' : total === 1 ? '1 vote' : `${total} votes`,
      kind: 'votes',
      p: counts.map((count) => count / total),
      counts,
    });
  found.push({
    name: data.source === 'teacher' || !data.source ? 'teacher' : data.source,
    detail: 'whole face',
    kind: 'teacher',
    p: Array.from(distributionOf(row)),
  });
  const place = placeOf[row];
  if (place >= 0)
    for (const s of students)
      found.push({name: s.name, detail: 'student', kind: 'student', p: sharesAt(s.distribution, place)});
  return found;
}

function comparison(row) {
  const columns = voices(row);
  const head = element('tr', {
    children: [
      element('th', {scope: 'col', text: 'class'}),
      ...columns.map(({name, detail}) =>
        element('th', {
          scope: 'col',
          children: [element('span', {text: name}), element('span', {class: 'quiet', text: detail})],
        }),
      ),
    ],
  });
  const lines = classes.map((name, k) => {
    const cells = columns.map(({p, kind, counts}) => {
      const fill = element('span', {class: `fill ${kind}`});
      fill.style.width = `${(100 * p[k]).toFixed(1)}%`;
      const first = p.every((value) => value <= p[k]);
      const value = element('span', {
        class: first ? 'value first' : 'value',
        text: percent(p[k], 1),
        title: counts ? `${+counts[k].toFixed(2)} votes` : undefined,
      });
      return element('td', {children: [element('span', {class: 'track', children: [fill]}), value]});
    });
    const mark = k === label[row] ? [element('span', {class: 'mark', text: ' label'})] : [];
    return element('tr', {
      class: k === label[row] ? 'own' : undefined,
      children: [element('th', {scope: 'row', children: [name, ...mark]}), ...cells],
    });
  });
  const last = element('tr', {
    class: 'total',
    children: [
      element('th', {scope: 'row', text: 'entropy, nats'}),
      ...columns.map(({p}) =>
        element('td', {children: [element('span', {class: 'value', text: entropyOf(p).toFixed(3)})]}),
      ),
    ],
  });
  const table = element('table', {
    class: 'comparison',
    children: [
      element('caption', {text: 'Percent by class'}),
      element('thead', {children: [head]}),
      element('tbody', {children: lines}),
      element('tfoot', {children: [last]}),
    ],
  });
  table.style.minWidth = `${8 + 5.6 * columns.length}em`;
  return scrolling('Percent by class', table);
}

function factsOf(row) {
  const pairs = [
    ['label', labelName(label[row])],
    ['label’s probability', label[row] < 0 ? '–' : `${percent(1 - disagreement[row], 1)} %`],
    ['most probable', `${classes[top1[row]]}, ${percent(lead[row], 1)} points ahead`],
    ['doubtful', doubtOf(row)],
    ['split', splitName(split[row])],
    ['fold', foldName(fold[row])],
  ];
  return element('dl', {
    class: 'facts',
    children: pairs.flatMap(([name, text]) => [element('dt', {text: name}), element('dd', {text})]),
  });
}

function doubtOf(row) {
  const why = [];
  if (isDoubtful(row, 'other')) why.push('most probable is not the label');
  if (isDoubtful(row, 'close')) why.push('narrow lead');
  if (rankOf[row] > 0) why.push(`likely label error, number ${whole(rankOf[row])} of ${whole(named.length)}`);
  return why.length ? `yes: ${why.join('; ')}` : 'no';
}

function highlight(view) {
  const boxes = dialog.querySelector('svg.large');
  boxes.classList.toggle('one', view !== null);
  for (const box of boxes.querySelectorAll('.view-box')) box.classList.toggle('chosen', box.dataset.view === view);
}

// Builds the dialog about a row; `position` is its place in the gallery's order, -1 if the filters leave it out.
function openFace(row, position) {
  const place = placeOf[row];
  const views = place >= 0 ? Array.from({length: V}, (_, view) => view) : [];
  const step = (by, text, name) => {
    const to = position + by;
    const button = element('button', {
      type: 'button',
      class: 'step',
      text,
      'aria-label': name,
      disabled: position < 0 || to < 0 || to >= shown.limit,
    });
    button.addEventListener('click', () => goTo(to));
    return button;
  };
  const close = element('button', {type: 'button', id: 'close', text: 'Close', 'aria-keyshortcuts': 'Escape'});
  close.addEventListener('click', () => dialog.close());
  const where = position >= 0 ? `${whole(position + 1)} of ${whole(shown.order.length)}` : 'outside the filters';
  const bar = element('div', {
    class: 'dialog-bar',
    children: [
      step(-1, '←', 'Previous face'),
      element('span', {class: 'quiet', text: where}),
      step(1, '→', 'Next face'),
      close,
    ],
  });

  const toggle = element('input', {type: 'checkbox', id: 'boxes', checked: true});
  const large = face(
    row,
    views.map((view) => outline(place, view)),
  );
  toggle.addEventListener('change', () => large.classList.toggle('bare', !toggle.checked));
  const under = views.length
    ? [element('label', {class: 'check', children: [toggle, ` boxes of the ${V} views`]})]
    : [];
  const left = element('div', {class: 'portrait', children: [large, ...under]});
  const right = element('div', {class: 'said', children: [factsOf(row), comparison(row)]});

  const tiles = views.map((view) => tile(row, place, view));
  let kept = null; // the view that was pressed
  for (const each of tiles) {
    const {view} = each.dataset;
    each.addEventListener('click', () => {
      kept = kept === view ? null : view;
      for (const other of tiles) other.setAttribute('aria-pressed', String(other.dataset.view === kept));
      highlight(kept);
    });
    for (const come of ['mouseenter', 'focus']) each.addEventListener(come, () => highlight(view));
    for (const go of ['mouseleave', 'blur']) each.addEventListener(go, () => highlight(kept));
  }
  let below = element('p', {class: 'quiet', text: 'This cache has no stored views: students crop freely.'});
  if (tiles.length) below = element('div', {class: 'tiles', children: tiles});
  else if (V)
    below = element('p', {
      class: 'quiet',
      text:
        `Picture and views of this face are not in this file. fer inspect CACHE --face ID shows its ${V} views; ` +
        'fer inspect CACHE --html FILE --sample N puts more faces in.',
    });

  const again = opened !== null;
  opened = row;
  dialog.replaceChildren(
    bar,
    element('h2', {id: 'face-id', children: [element('bdi', {text: data.ids[row]})]}),
    element('div', {class: 'two', children: [left, right]}),
    element('h3', {text: 'Views: what was seen, and what was said of it'}),
    below,
  );
  if (!dialog.open) dialog.showModal();
  if (again) dialog.scrollTop = 0;
  close.focus({preventScroll: true});
}
