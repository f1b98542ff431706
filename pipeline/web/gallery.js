// The gallery: only the cards near the window are in the document, so that 30,000 faces scroll like thirty.

const gallery = document.getElementById('gallery');
const CARD = 320; // least width in pixels
const GAP = 14;
const AHEAD = 2; // rows above and below the window
const TALLEST = 12e6; // pixels; browsers cut off what is much taller

const shown = {
  order: new Uint32Array(0),
  columns: 1,
  width: CARD,
  height: 150,
  limit: 0,
  active: 0,
  cards: new Map(),
  spare: [],
};

function sortKeys({sort, a, b}) {
  if (sort === 'entropy') return nats;
  if (sort === 'disagreement') return disagreement;
  if (sort === 'margin') return lead;
  if (sort === 'named') return rankOf;
  if (sort === 'class') return Float64Array.from({length: N}, (_, row) => canonical[row * C + a]);
  if (sort === 'pair')
    return Float64Array.from({length: N}, (_, row) => Math.min(canonical[row * C + a], canonical[row * C + b]));
  return Float64Array.from({length: N}, (_, row) => -row); // as stored: the first is the highest
}

function isDoubtful(row, kind) {
  if (kind === 'named') return rankOf[row] > 0;
  const other = label[row] >= 0 && top1[row] !== label[row];
  const close = lead[row] < data.margin;
  return kind === 'other' ? other : kind === 'close' ? close : other || close;
}

let lowered = null; // ids in lower case, once someone searches

// Rows that the filters leave, in order. Of equals the earlier row comes first; what has no key comes last, both ways.
function orderOf(state) {
  const wanted = state.q.toLowerCase();
  if (wanted && !lowered) lowered = data.ids.map((id) => id.toLowerCase());
  const kept = [];
  for (let row = 0; row < N; row++) {
    if (state.split !== null && split[row] !== state.split) continue;
    if (state.label !== null && label[row] !== state.label) continue;
    if (state.top !== null && top1[row] !== state.top) continue;
    if (state.fold !== null && fold[row] !== state.fold) continue;
    if (state.doubtful && !isDoubtful(row, state.doubtful)) continue;
    if (state.pictured && !hasPicture(row)) continue;
    if (wanted && !lowered[row].includes(wanted)) continue;
    kept.push(row);
  }
  const keys = sortKeys(state);
  const sign = state.dir === 'asc' ? 1 : -1;
  return Uint32Array.from(kept).sort((i, j) => {
    const x = keys[i];
    const y = keys[j];
    if (x === y || (x !== x && y !== y)) return i - j;
    return x !== x ? 1 : y !== y ? -1 : sign * (x - y);
  });
}

function showOrder(order) {
  shown.order = order;
  shown.active = 0;
  for (const position of [...shown.cards.keys()]) release(position);
  if (window.scrollY > gallery.offsetTop) window.scrollTo({top: gallery.offsetTop - 8, behavior: 'instant'});
  layOut();
}

function card() {
  const picture = element('img', {alt: '', decoding: 'async'});
  const missing = element('span', {class: 'missing', text: 'picture not embedded'});
  const distribution = bars();
  const says = element('span', {class: 'says'});
  const id = element('bdi', {class: 'id'});
  const button = element('button', {
    type: 'button',
    class: 'card',
    children: [
      element('span', {class: 'frame', children: [picture, missing]}),
      distribution.list,
      element('span', {class: 'caption', children: [says, id]}),
    ],
  });
  const item = element('li', {children: [button]});
  return {item, button, picture, missing, distribution, says, id};
}

function fill(made, position) {
  const row = shown.order[position];
  const picture = pictureOf(row);
  if (picture) made.picture.src = picture;
  else made.picture.removeAttribute('src');
  made.picture.hidden = !picture;
  made.missing.hidden = Boolean(picture);
  made.distribution.set(distributionOf(row), label[row]);
  const {agrees, text} = verdict(row);
  made.says.textContent = text;
  made.says.classList.toggle('differs', agrees === false);
  made.id.textContent = data.ids[row];
  made.id.title = data.ids[row];
  made.button.dataset.row = row;
  made.button.setAttribute('aria-label', `${data.ids[row]}: ${text}; ${told(distributionOf(row))}`);
  made.item.setAttribute('aria-posinset', position + 1);
  made.item.setAttribute('aria-setsize', shown.order.length);
}

function release(position) {
  const made = shown.cards.get(position);
  made.item.remove();
  shown.cards.delete(position);
  shown.spare.push(made);
}

// Measures a card and the window; then the cards.
function layOut() {
  const width = gallery.clientWidth;
  if (!width) return; // hidden
  shown.columns = Math.max(1, Math.floor((width + GAP) / (CARD + GAP)));
  shown.width = (width - GAP * (shown.columns - 1)) / shown.columns;
  if (shown.order.length) {
    const probe = shown.spare.pop() ?? card();
    fill(probe, 0);
    probe.item.style.width = `${shown.width}px`;
    gallery.append(probe.item);
    shown.height = probe.item.offsetHeight;
    probe.item.remove();
    shown.spare.push(probe);
  }
  const lines = Math.min(Math.ceil(shown.order.length / shown.columns), Math.floor(TALLEST / (shown.height + GAP)));
  shown.limit = Math.min(shown.order.length, lines * shown.columns);
  gallery.style.height = `${Math.max(0, lines * (shown.height + GAP) - GAP)}px`;
  for (const position of [...shown.cards.keys()]) place(position);
  renderCards();
}

function place(position) {
  const {item, button} = shown.cards.get(position);
  const x = (position % shown.columns) * (shown.width + GAP);
  const y = Math.floor(position / shown.columns) * (shown.height + GAP);
  item.style.width = `${shown.width}px`;
  item.style.transform = `translate(${x}px, ${y}px)`;
  button.tabIndex = position === shown.active ? 0 : -1;
}

function renderCards() {
  const step = shown.height + GAP;
  const above = window.scrollY - gallery.offsetTop;
  const from = Math.max(0, (Math.floor(above / step) - AHEAD) * shown.columns);
  const until = Math.min(shown.limit, (Math.ceil((above + window.innerHeight) / step) + AHEAD) * shown.columns);
  // the one that the keyboard is on stays, wherever the window is scrolled to
  for (const position of [...shown.cards.keys()]) {
    if ((position < from || position >= until) && position !== shown.active) release(position);
  }
  const wanted = shown.active < shown.limit ? [shown.active] : [];
  for (let position = from; position < until; position++) wanted.push(position);
  for (const position of wanted) {
    if (shown.cards.has(position)) continue;
    const made = shown.spare.pop() ?? card();
    shown.cards.set(position, made);
    fill(made, position);
    place(position);
    // in the document in the order of the faces, for those who read it without seeing it
    const next = Math.min(...[...shown.cards.keys()].filter((other) => other > position));
    gallery.insertBefore(made.item, Number.isFinite(next) ? shown.cards.get(next).item : null);
  }
}

function activate(position, focus = true) {
  const former = shown.cards.get(shown.active);
  if (former) former.button.tabIndex = -1;
  shown.active = Math.min(Math.max(position, 0), Math.max(shown.limit - 1, 0));
  renderCards();
  const made = shown.cards.get(shown.active);
  if (!made) return;
  made.button.tabIndex = 0;
  made.item.scrollIntoView({block: 'nearest', behavior: 'instant'});
  if (focus) made.button.focus({preventScroll: true});
}

function moveByKey(event) {
  const page = Math.max(1, Math.floor(window.innerHeight / (shown.height + GAP)) - 1) * shown.columns;
  const steps = {
    ArrowLeft: -1,
    ArrowRight: 1,
    ArrowUp: -shown.columns,
    ArrowDown: shown.columns,
    PageUp: -page,
    PageDown: page,
    Home: -Infinity,
    End: Infinity,
  };
  const step = steps[event.key];
  if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const target = shown.active + step;
  if (Math.abs(step) !== shown.columns || (target >= 0 && target < shown.limit)) activate(target);
}
