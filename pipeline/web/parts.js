// Small pieces of the document. Text is always set as text: ids and names come from files and may hold anything.

function element(name, {text, title, children = [], ...attributes} = {}) {
  const made = document.createElement(name);
  return furnished(made, {text, title, children, ...attributes});
}

function drawn(name, {text, title, children = [], ...attributes} = {}) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  if (title !== undefined) children = [drawn('title', {text: title}), ...children];
  return furnished(made, {text, children, ...attributes});
}

function furnished(made, {text, title, children, ...attributes}) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? '' : value);
  }
  if (title !== undefined) made.setAttribute('title', title);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function percent(share, digits = 0) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(digits)}` : '–';
}

function whole(count) {
  return count.toLocaleString('en-US');
}

// A distribution as bars with names and percent; `set` fills it. With many classes only the most probable are shown.
const MOST_BARS = 10;

function bars() {
  const lines = Array.from({length: Math.min(C, MOST_BARS)}, () => {
    const name = element('span', {class: 'name'});
    const fill = element('span', {class: 'fill'});
    const value = element('span', {class: 'value'});
    const line = element('div', {
      class: 'bar',
      children: [name, element('span', {class: 'track', children: [fill]}), value],
    });
    return {line, name, fill, value};
  });
  const list = element('div', {class: 'bars', role: 'img', children: lines.map((each) => each.line)});
  return {
    list,
    set(p, own) {
      let shown = classes.map((_, k) => k);
      const first = shown.reduce((best, k) => (p[k] > p[best] ? k : best), 0);
      if (C > MOST_BARS) {
        shown = shown.sort((a, b) => p[b] - p[a] || a - b).slice(0, MOST_BARS);
        if (own >= 0 && !shown.includes(own)) shown[MOST_BARS - 1] = own;
      }
      lines.forEach(({line, name, fill, value}, place) => {
        const k = shown[place];
        name.textContent = classes[k];
        value.textContent = percent(p[k]);
        fill.style.width = `${(100 * p[k]).toFixed(1)}%`;
        line.classList.toggle('own', k === own);
        line.classList.toggle('first', k === first);
      });
      list.setAttribute('aria-label', told(p));
    },
  };
}

// A distribution in words, the largest shares first.
function told(p) {
  const order = classes.map((_, k) => k).sort((a, b) => p[b] - p[a] || a - b);
  return order
    .slice(0, 4)
    .map((k) => `${classes[k]} ${percent(p[k])} %`)
    .join(', ');
}

// How a face's most probable class stands to its label.
function verdict(row) {
  const says = `${classes[top1[row]]} ${percent(distributionOf(row)[top1[row]])} %`;
  if (label[row] < 0) return {agrees: null, text: `${says}, no label`};
  if (label[row] === top1[row]) return {agrees: true, text: `${says} = label`};
  return {agrees: false, text: `${says} ≠ label ${classes[label[row]]}`};
}

// A table that is wider than a phone scrolls by itself, also by keyboard.
function scrolling(name, table) {
  return element('div', {class: 'scrolling', tabindex: '0', role: 'region', 'aria-label': name, children: [table]});
}

function options(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => element('option', {value, text})));
}
