// What the page is about: arrays of all faces, decoded once, and figures worked out from them.
// Rows are numbered as in the cache. All probabilities are 0 to 1, entropies are in nats.

const ARRAYS = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  int32: Int32Array,
  float32: Float32Array,
};

function unpacked(array) {
  const text = atob(array.data);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return new ARRAYS[array.type](bytes.buffer); // typed arrays are little-endian on every machine with a browser
}

const data = JSON.parse(document.getElementById('data').textContent);
const classes = data.classes;
const C = classes.length;
const N = data.ids.length;
const V = data.views;
const MOST_NATS = Math.log(Math.max(C, 2));

const canonical = unpacked(data.canonical); // (N, C)
const label = unpacked(data.label); // (N,), -1 without
const fold = unpacked(data.fold);
const split = unpacked(data.split); // (N,), index into data.splits
const votes = data.votes && unpacked(data.votes); // (N, C) counts, NaN without
const wholeVotes = votes && votes.every((count) => Number.isNaN(count) || Number.isInteger(count));
const named = data.named && unpacked(data.named); // rows of likely label errors, the likeliest first
const rows = unpacked(data.rows); // (M,), the faces with views and, if photographs are there, a picture
const viewBox = unpacked(data.view_box); // (M, V, 4): top, left, height, width in pixels of the face
const viewFlip = unpacked(data.view_flip); // (M, V)
const viewDistribution = unpacked(data.view_distribution); // (M, V, C), of 65535
const students = data.students.map((s) => ({name: s.name, distribution: unpacked(s.distribution)})); // (M, C), of 65535

const placeOf = new Int32Array(N).fill(-1); // of a row among the M
rows.forEach((row, place) => {
  placeOf[row] = place;
});

const rankOf = new Float64Array(N).fill(NaN); // of a row among the likely label errors, from 1
if (named) named.forEach((row, rank) => (rankOf[row] = rank + 1));

const nats = new Float64Array(N);
const top1 = new Int16Array(N);
const lead = new Float64Array(N); // of the most probable class before the second
const disagreement = new Float64Array(N); // 1 - probability of the label, NaN without a label
for (let row = 0; row < N; row++) {
  const p = distributionOf(row);
  let first = 0;
  let second = -1;
  for (let k = 1; k < C; k++) {
    if (p[k] > p[first]) {
      second = first;
      first = k;
    } else if (second < 0 || p[k] > p[second]) second = k;
  }
  nats[row] = entropyOf(p);
  top1[row] = first;
  lead[row] = p[first] - (second < 0 ? 0 : p[second]);
  disagreement[row] = label[row] < 0 ? NaN : 1 - p[label[row]];
}

function distributionOf(row) {
  return canonical.subarray(row * C, (row + 1) * C);
}

function entropyOf(p) {
  let sum = 0;
  for (const value of p) if (value > 0) sum -= value * Math.log(value);
  return Math.max(sum, 0);
}

function sharesAt(array, place) {
  return Array.from(array.subarray(place * C, (place + 1) * C), (value) => value / 65535);
}

// Counts of votes about a face, or null.
function votesOf(row) {
  if (!votes) return null;
  const counts = Array.from(votes.subarray(row * C, (row + 1) * C));
  return counts.every(Number.isFinite) ? counts : null;
}

function hasPicture(row) {
  return placeOf[row] >= 0 && data.pictures.length > 0;
}

function pictureOf(row) {
  return hasPicture(row) ? `data:image/jpeg;base64,${data.pictures[placeOf[row]]}` : null;
}

function splitName(k) {
  return data.splits[k] === '' ? 'no split' : data.splits[k];
}

function labelName(k) {
  return k < 0 ? 'no label' : classes[k];
}

function foldName(value) {
  return `${value}: ${data.folds.find((f) => f.fold === value).meaning}`;
}
