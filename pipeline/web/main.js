// What is shown is one state; it is in the address, so that a view can be shared and the Back key works.

const at = (id) => document.getElementById(id);
const START = {
  view: 'gallery',
  sort: 'entropy',
  a: 0,
  b: Math.min(1, C - 1),
  dir: 'desc',
  split: null,
  label: null,
  top: null,
  fold: null,
  doubtful: '',
  pictured: false,
  q: '',
  face: null,
};
let state = {...START};

// --- the address --------------------------------------------------------------------------------------------------

// Classes and splits go by name: a shared address means the same in a page that was made anew.
function toHash(s) {
  const words = new URLSearchParams();
  if (s.view !== START.view) words.set('view', s.view);
  if (s.sort !== START.sort) words.set('sort', s.sort);
  if (s.sort === 'class' || s.sort === 'pair') words.set('a', classes[s.a]);
  if (s.sort === 'pair') words.set('b', classes[s.b]);
  if (s.dir !== START.dir) words.set('dir', s.dir);
  if (s.split !== null) words.set('split', data.splits[s.split]);
  if (s.label !== null) words.set('label', s.label < 0 ? '' : classes[s.label]);
  if (s.top !== null) words.set('top', classes[s.top]);
  if (s.fold !== null) words.set('fold', s.fold);
  if (s.doubtful) words.set('doubtful', s.doubtful);
  if (s.pictured) words.set('pictured', '1');
  if (s.q) words.set('q', s.q);
  if (s.face !== null) words.set('face', data.ids[s.face]);
  return `#${words}`;
}

// What an address does not say, or says of something that is not here, is as at the start.
function fromHash(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ''));
  const oneOf = (key, known) => (known.includes(words.get(key)) ? words.get(key) : START[key]);
  const placed = (key, names, otherwise) =>
    words.has(key) && names.includes(words.get(key)) ? names.indexOf(words.get(key)) : otherwise;
  const folds = data.folds.map((f) => String(f.fold));
  return {
    view: oneOf('view', ['gallery', 'overview']),
    sort: oneOf('sort', ['stored', 'entropy', 'disagreement', 'margin', 'class', 'pair', ...(named ? ['named'] : [])]),
    a: placed('a', classes, START.a),
    b: placed('b', classes, START.b),
    dir: oneOf('dir', ['desc', 'asc']),
    split: placed('split', data.splits, null),
    label: words.get('label') === '' ? -1 : placed('label', classes, null),
    top: placed('top', classes, null),
    fold: folds.includes(words.get('fold')) ? Number(words.get('fold')) : null,
    doubtful: oneOf('doubtful', ['any', 'other', 'close', ...(named ? ['named'] : [])]),
    pictured: words.get('pictured') === '1',
    q: words.get('q') ?? '',
    face: placed('face', data.ids, null),
  };
}

// --- state to document ----------------------------------------------------------------------------------------------

let former = null; // the state that the document shows

function change(part, {push = false} = {}) {
  state = {...state, ...part};
  const hash = toHash(state);
  if (push) history.pushState(null, '', hash);
  else history.replaceState(null, '', hash);
  show();
}

function show() {
  const was = former;
  former = state;
  const changed = (...keys) => was === null || keys.some((key) => state[key] !== was[key]);
  at('gallery-view').hidden = state.view !== 'gallery';
  at('overview-view').hidden = state.view !== 'overview';
  for (const view of ['gallery', 'overview']) {
    if (state.view === view) at(`show-${view}`).setAttribute('aria-current', 'page');
    else at(`show-${view}`).removeAttribute('aria-current');
  }
  fillControls();
  if (changed('sort', 'a', 'b', 'dir', 'split', 'label', 'top', 'fold', 'doubtful', 'pictured', 'q')) {
    showOrder(orderOf(state));
    const pictured = shown.order.reduce((sum, row) => sum + (hasPicture(row) ? 1 : 0), 0);
    const cut =
      shown.limit && shown.limit < shown.order.length
        ? `; the first ${whole(shown.limit)} are listed, filters show others`
        : '';
    at('count').textContent =
      `${whole(shown.order.length)} of ${whole(N)} faces, ${whole(pictured)} with a picture${cut}`;
    at('nothing').hidden = shown.order.length > 0;
  } else if (state.view === 'gallery' && changed('view')) layOut();
  if (state.view === 'overview' && changed('view', 'split')) showOverview(state.split);
  if (changed('face')) {
    if (state.face !== null) openFace(state.face, shown.order.indexOf(state.face));
    else if (dialog.open) dialog.close();
  }
}

function fillControls() {
  at('sort').value = state.sort === 'class' ? `class ${state.a}` : state.sort;
  at('pair-fields').hidden = state.sort !== 'pair';
  at('pair-a').value = state.a;
  at('pair-b').value = state.b;
  at('direction').value = state.dir;
  for (const key of ['split', 'label', 'top', 'fold']) at(key).value = state[key] ?? 'all';
  at('overview-split').value = state.split ?? 'all';
  at('doubtful').value = state.doubtful;
  at('pictured').checked = state.pictured;
  const filters =
    ['split', 'label', 'top', 'fold'].filter((key) => state[key] !== null).length + (state.doubtful ? 1 : 0);
  at('more').textContent = filters ? `Filters (${filters})` : 'Filters';
  if (at('search').value !== state.q) at('search').value = state.q;
}

// --- document to state ----------------------------------------------------------------------------------------------

function prepareControls() {
  const names = classes.map((name, k) => [String(k), name]);
  const general = [
    ['entropy', 'entropy'],
    ['disagreement', 'disagreement'],
    ['margin', 'lead of the most probable'],
    ...(named ? [['named', 'likely label error']] : []),
    ['stored', 'order in the cache'],
  ];
  options(at('sort'), general);
  at('sort').append(
    element('optgroup', {
      label: 'probability of',
      children: names.map(([k, text]) => element('option', {value: `class ${k}`, text})),
    }),
  );
  at('sort').append(element('option', {value: 'pair', text: 'two classes …'}));
  options(at('pair-a'), names);
  options(at('pair-b'), names);
  const splits = [['all', 'all'], ...data.splits.map((_, k) => [String(k), splitName(k)])];
  options(at('split'), splits);
  options(at('overview-split'), splits);
  options(at('label'), [['all', 'all'], ...names, ...(label.includes(-1) ? [['-1', 'no label']] : [])]);
  options(at('top'), [['all', 'all'], ...names]);
  options(at('fold'), [['all', 'all'], ...data.folds.map((f) => [String(f.fold), foldName(f.fold)])]);
  options(at('doubtful'), [
    ['', 'all faces'],
    ['any', 'doubtful'],
    ['other', 'not the label'],
    ['close', 'narrow lead'],
    ...(named ? [['named', 'likely label error']] : []),
  ]);
  at('doubtful-means').textContent =
    `Doubtful: the most probable class is not the label, or leads by less than ${percent(data.margin)} points. ` +
    'Disagreement: one minus the label’s probability. ◆ marks the label.' +
    (named ? ' Likely label errors are named by cleanlab, the likeliest is number 1.' : '');
  at('about').textContent = [
    data.folder,
    `${whole(N)} faces`,
    `${C} classes`,
    V ? `${V} views beside the whole face` : 'no stored views',
    data.source ? `from ${data.source}` : '',
    `manifest ${data.digest}`,
  ]
    .filter(Boolean)
    .join(' · ');
  document.title = `${data.folder}: label distributions`;

  at('sort').addEventListener('change', (event) => {
    const [sort, k] = event.target.value.split(' ');
    const dir = sort === 'margin' || sort === 'named' ? 'asc' : 'desc'; // what is looked for first
    if (sort === 'class') change({sort, a: Number(k), dir});
    else if (sort === 'pair' && state.a === state.b) change({sort, dir, b: (state.a + 1) % C});
    else change({sort, dir});
  });
  at('pair-a').addEventListener('change', (event) => change({a: Number(event.target.value)}));
  at('pair-b').addEventListener('change', (event) => change({b: Number(event.target.value)}));
  at('direction').addEventListener('change', (event) => change({dir: event.target.value}));
  for (const key of ['split', 'label', 'top', 'fold']) {
    at(key).addEventListener('change', (event) =>
      change({[key]: event.target.value === 'all' ? null : Number(event.target.value)}),
    );
  }
  at('overview-split').addEventListener('change', (event) =>
    change({split: event.target.value === 'all' ? null : Number(event.target.value)}),
  );
  at('doubtful').addEventListener('change', (event) => change({doubtful: event.target.value}));
  at('pictured').addEventListener('change', (event) => change({pictured: event.target.checked}));
  at('search').addEventListener('input', (event) => change({q: event.target.value}));
  at('more').addEventListener('click', () => {
    const open = at('controls').classList.toggle('open');
    at('more').setAttribute('aria-expanded', String(open));
  });
  at('reset').addEventListener('click', () => change({...START, view: state.view}));
  for (const form of [at('controls'), at('overview-controls')])
    form.addEventListener('submit', (event) => event.preventDefault());
  at('search').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === 'ArrowDown') {
      event.preventDefault();
      activate(shown.active);
    }
  });
  for (const view of ['gallery', 'overview'])
    at(`show-${view}`).addEventListener('click', () => change({view}, {push: true}));
  at('skip').addEventListener('click', () => {
    if (state.view !== 'gallery') change({view: 'gallery'}, {push: true});
    activate(shown.active);
  });
}

// Shows the face at a place in the gallery's order, in the dialog that is open already.
function goTo(position) {
  if (position < 0 || position >= shown.limit) return;
  activate(position, false);
  change({face: shown.order[position]});
}

function listen() {
  gallery.addEventListener('click', (event) => {
    const button = event.target.closest('button.card');
    if (!button) return;
    const row = Number(button.dataset.row);
    activate(shown.order.indexOf(row), false);
    change({face: row}, {push: true});
  });
  gallery.addEventListener('keydown', moveByKey);
  dialog.addEventListener('close', () => {
    opened = null;
    if (state.face !== null) change({face: null});
    if (state.view === 'gallery') activate(shown.active);
  });
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
  dialog.addEventListener('keydown', (event) => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    // a table that scrolls sideways has these keys for itself
    if (event.target.matches('.scrolling') && event.target.scrollWidth > event.target.clientWidth) return;
    const position = shown.order.indexOf(state.face);
    if (position < 0) return;
    event.preventDefault();
    goTo(position + by);
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== '/' || dialog.open || event.target.matches('input, select, textarea')) return;
    event.preventDefault();
    if (state.view !== 'gallery') change({view: 'gallery'}, {push: true});
    at('search').focus();
    at('search').select();
  });
  for (const event of ['hashchange', 'popstate']) {
    window.addEventListener(event, () => {
      state = fromHash(location.hash);
      show();
    });
  }
  let waiting = false;
  window.addEventListener(
    'scroll',
    () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        if (state.view === 'gallery') renderCards();
      });
    },
    {passive: true},
  );
  let width = gallery.clientWidth;
  new ResizeObserver(() => {
    if (gallery.clientWidth === width) return;
    width = gallery.clientWidth;
    if (state.view === 'gallery') layOut();
  }).observe(gallery);
}

prepareControls();
listen();
state = fromHash(location.hash);
show();
document.documentElement.dataset.ready = 'yes';
