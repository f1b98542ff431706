/**
 * Finds faces, cuts them out as fer align does, and asks an exported student about them; all of it in this page.
 *
 * Pictures are ImageData or alike: {width, height, data}, four bytes a pixel. Coordinates are those of
 * data/geometry.py: 0 is the outer edge of the first pixel. Steps are those of data/detect.py and pipeline/align.py.
 */
import * as ort from './ort.wasm.bundle.min.mjs';

ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send
ort.env.logLevel = 'error';

// --- pictures

const blank = (width, height) => ({ width, height, data: new Uint8ClampedArray(4 * width * height) });

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** How much a pixel counts that lies `d` from a place, each place standing for `step` pixels, and how far it looks. */
const AREA = { reach: (step) => step / 2 + 0.5, weight: (d, step) => clamp(step / 2 + 0.5 - Math.abs(d), 0, 1) };
const LINEAR = { reach: (step) => Math.max(step, 1), weight: (d, step) => tent(d / LINEAR.reach(step)) };
const CUBIC = { reach: () => 2, weight: keys };

function tent(d) {
  return Math.max(0, 1 - Math.abs(d));
}

/** Keys' cubic with -0.75, which is OpenCV's. */
function keys(d) {
  const x = Math.abs(d);
  if (x < 1) return (1.25 * x - 2.25) * x * x + 1;
  return x < 2 ? -0.75 * (((x - 5) * x + 8) * x - 4) : 0;
}

/** For each of `to` places along a side of `from` pixels: the first pixel that counts, and all weights from there. */
function weights(from, to, kernel) {
  const step = from / to;
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * step;
    const first = Math.max(0, Math.floor(centre - kernel.reach(step)));
    const last = Math.min(from, Math.ceil(centre + kernel.reach(step)));
    const values = [];
    for (let k = first; k < last; k++) values.push(kernel.weight(k + 0.5 - centre, step));
    const sum = values.reduce((a, b) => a + b);
    return { first, values: values.map((value) => value / sum) };
  });
}

/** The picture at another size. */
export function resized(image, width, height, kernel) {
  if (width === image.width && height === image.height) return image;
  // torch, whose LINEAR is, rounds between the two passes, and OpenCV does not
  const rows = new (kernel === LINEAR ? Uint8ClampedArray : Float32Array)(4 * width * image.height);
  weights(image.width, width, kernel).forEach(({ first, values }, x) => {
    for (let y = 0; y < image.height; y++) {
      for (let channel = 0; channel < 4; channel++) {
        let sum = 0;
        const start = 4 * (y * image.width + first) + channel;
        for (let k = 0; k < values.length; k++) sum += values[k] * image.data[start + 4 * k];
        rows[4 * (y * width + x) + channel] = sum;
      }
    }
  });
  const out = blank(width, height);
  weights(image.height, height, kernel).forEach(({ first, values }, y) => {
    for (let x = 0; x < 4 * width; x++) {
      let sum = 0;
      for (let k = 0; k < values.length; k++) sum += values[k] * rows[4 * width * (first + k) + x];
      out.data[4 * width * y + x] = sum;
    }
  });
  return out;
}

/** The part of a picture from x, y on; what lies outside is black. */
function part(image, x, y, width, height) {
  const out = blank(width, height);
  for (let row = Math.max(0, -y); row < Math.min(height, image.height - y); row++) {
    const left = Math.max(0, x);
    const right = Math.min(image.width, x + width);
    const start = 4 * (y + row) * image.width;
    out.data.set(image.data.subarray(start + 4 * left, start + 4 * right), 4 * (row * width + left - x));
  }
  return out;
}

/** A picture as a network's input (1, 3, height, width), value by value as `scale` says; channels in `order`. */
function planes(image, order, scale) {
  const count = image.width * image.height;
  const out = new Float32Array(3 * count);
  order.forEach((channel, plane) => {
    for (let k = 0; k < count; k++) out[plane * count + k] = scale(image.data[4 * k + channel], channel);
  });
  return out;
}

// --- where the face goes: data/geometry.py and pipeline/align.py

/** The similarity that takes points nearest to a target, as [a, b, c, d]: x' = a x - b y + c, y' = b x + a y + d. */
export function similarity(points, target) {
  const mean = (list, axis) => list.reduce((sum, point) => sum + point[axis], 0) / list.length;
  const [mx, my, tx, ty] = [mean(points, 0), mean(points, 1), mean(target, 0), mean(target, 1)];
  let [along, across, spread] = [0, 0, 0];
  points.forEach(([x, y], k) => {
    along += (x - mx) * target[k][0] + (y - my) * target[k][1];
    across += (x - mx) * target[k][1] - (y - my) * target[k][0];
    spread += (x - mx) ** 2 + (y - my) ** 2;
  });
  const [a, b] = [along / spread, across / spread];
  return [a, b, tx - a * mx + b * my, ty - b * mx - a * my];
}

/** The picture of crop x crop pixels that a similarity takes from an image; outside the image its edge goes on. */
export function cut(image, [a, b, c, d], crop) {
  const scale = Math.hypot(a, b);
  const back = (x, y) => [(a * (x - c) + b * (y - d)) / scale ** 2, (a * (y - d) - b * (x - c)) / scale ** 2];
  const corners = [back(0, 0), back(crop, 0), back(0, crop), back(crop, crop)];
  const margin = 4 / Math.min(scale, 1);
  // only this part of a large picture is worked on
  const [first, last] = [[], []];
  [image.width, image.height].forEach((side, axis) => {
    const seen = corners.map((corner) => corner[axis]);
    first.push(clamp(Math.floor(Math.min(...seen) - margin), 0, side - 1));
    last.push(clamp(Math.ceil(Math.max(...seen) + margin), first[axis] + 1, side));
  });
  const [width, height] = [last[0] - first[0], last[1] - first[1]];
  let source = part(image, ...first, width, height);
  if (scale < 1) {
    // areas first, so that nothing aliases
    const shrunk = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    source = resized(source, ...shrunk, AREA);
  }
  const [kx, ky] = [source.width / width, source.height / height];
  const out = blank(crop, crop);
  for (let y = 0; y < crop; y++) {
    for (let x = 0; x < crop; x++) {
      const at = back(x + 0.5, y + 0.5);
      const sx = (at[0] - first[0]) * kx - 0.5;
      const sy = (at[1] - first[1]) * ky - 0.5;
      const [left, top] = [Math.floor(sx), Math.floor(sy)];
      const across = [-1, 0, 1, 2].map((k) => keys(left + k - sx));
      const down = [-1, 0, 1, 2].map((k) => keys(top + k - sy));
      const columns = [-1, 0, 1, 2].map((k) => 4 * clamp(left + k, 0, source.width - 1));
      for (let channel = 0; channel < 4; channel++) {
        let sum = 0;
        for (let j = 0; j < 4; j++) {
          const row = 4 * source.width * clamp(top + j - 1, 0, source.height - 1) + channel;
          for (let i = 0; i < 4; i++) sum += down[j] * across[i] * source.data[row + columns[i]];
        }
        out.data[4 * (y * crop + x) + channel] = sum;
      }
    }
  }
  return out;
}

// --- RetinaFace: data/detect.py

const STEPS = [[8, [16, 32]], [16, [64, 128]], [32, [256, 512]]]; // stride in pixels, sides of its two square priors
const [CENTRE_VARIANCE, SIZE_VARIANCE] = [0.1, 0.2];
const MEAN_RGB = [127, 117, 104];
const [DETECT_SIZE, SMALLEST, BORDER, RETRY_SIZES] = [640, 192, 64, [320, 160]];
const [MIN_SCORE, NMS_OVERLAP] = [0.5, 0.4];

/** The image as the network is to see it, and its border in pixels, the likeliest way first. */
function* attempts(image) {
  const longer = Math.max(image.width, image.height);
  const at = (size) => {
    const sides = [image.width, image.height].map((side) => Math.max(1, Math.round((side * size) / longer)));
    return resized(image, ...sides, size < longer ? AREA : CUBIC);
  };
  yield [at(clamp(longer, SMALLEST, DETECT_SIZE)), 0];
  const small = at(SMALLEST);
  yield [part(small, -BORDER, -BORDER, small.width + 2 * BORDER, small.height + 2 * BORDER), BORDER];
  for (const size of RETRY_SIZES) yield [at(size), 0];
  if (longer > DETECT_SIZE) yield [at(Math.min(longer, 2 * DETECT_SIZE)), 0];
}

/** The faces in a picture, the largest first: box [x1, y1, x2, y2], five landmarks [x, y], score. */
export async function detect(detector, image) {
  for (const [seen, border] of attempts(image)) {
    const found = await detectAsIs(detector, seen);
    if (found.length) {
      const scale = [(seen.width - 2 * border) / image.width, (seen.height - 2 * border) / image.height];
      const back = (value, axis) => (value - border) / scale[axis];
      return found
        .map(({ box, landmarks, score }) => ({
          box: box.map((edge, k) => back(edge, k % 2)),
          landmarks: landmarks.map(([x, y]) => [back(x, 0), back(y, 1)]),
          score,
        }))
        .sort((one, other) => area(other.box) - area(one.box));
    }
  }
  return [];
}

async function detectAsIs(detector, image) {
  const { width, height } = image;
  const input = planes(image, [2, 1, 0], (value, channel) => value - MEAN_RGB[channel]); // BGR
  const answer = await detector.run({ input: new ort.Tensor('float32', input, [1, 3, height, width]) });
  const [loc, conf, shifts] = [answer.loc.data, answer.conf.data, answer.landmarks.data];
  const found = [];
  let prior = 0;
  for (const [step, sides] of STEPS) {
    for (let row = 0; row < Math.ceil(height / step); row++) {
      for (let column = 0; column < Math.ceil(width / step); column++) {
        for (const side of sides) {
          const score = conf[2 * prior + 1];
          if (score > MIN_SCORE) {
            const shifted = (x, y) => [
              (column + 0.5) * step + x * CENTRE_VARIANCE * side,
              (row + 0.5) * step + y * CENTRE_VARIANCE * side,
            ];
            const [x, y] = shifted(loc[4 * prior], loc[4 * prior + 1]);
            const half = [2, 3].map((k) => (side * Math.exp(loc[4 * prior + k] * SIZE_VARIANCE)) / 2);
            const landmarks = [0, 2, 4, 6, 8].map((k) => shifted(shifts[10 * prior + k], shifts[10 * prior + k + 1]));
            found.push({ box: [x - half[0], y - half[1], x + half[0], y + half[1]], landmarks, score });
          }
          prior++;
        }
      }
    }
  }
  return keptApart(found.sort((one, other) => other.score - one.score));
}

const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);

/** Non-maximum suppression of faces, best first. */
function keptApart(found) {
  const kept = [];
  for (const face of found) {
    const overlaps = ({ box }) => {
      const width = Math.min(box[2], face.box[2]) - Math.max(box[0], face.box[0]);
      const height = Math.min(box[3], face.box[3]) - Math.max(box[1], face.box[1]);
      const shared = Math.max(width, 0) * Math.max(height, 0);
      return shared > NMS_OVERLAP * (area(box) + area(face.box) - shared);
    };
    if (!kept.some(overlaps)) kept.push(face);
  }
  return kept;
}

// --- the student

/** The metadata of an ONNX file, a protocol buffer whose fields 14 are pairs of a key (1) and a value (2). */
export function metadata(bytes) {
  const text = (part) => new TextDecoder().decode(part);
  const about = {};
  for (const [field, value] of fields(bytes)) {
    if (field === 14) {
      const pair = new Map(fields(value));
      about[text(pair.get(1))] = text(pair.get(2));
    }
  }
  return about;
}

/** The fields of a protocol buffer that have a length, as [number, bytes]; nothing from where it is none. */
function* fields(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let unit = 1; ; unit *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * unit;
      if (!(byte > 127)) return value;
    }
  };
  while (at < bytes.length) {
    const key = number();
    if (key % 8 === 0) number();
    else if (key % 8 === 1) at += 8;
    else if (key % 8 === 5) at += 4;
    else if (key % 8 === 2) {
      const length = number();
      yield [Math.floor(key / 8), bytes.subarray(at, (at += length))];
    } else return;
  }
}

/** What the networks say of a picture: its faces, each with box, its crop, probabilities and, if there are, maps. */
export async function analysed({ detector, student, about }, image) {
  const { crop, landmarks: target, min_face: least } = about.alignment;
  const faces = target ? await detect(detector, image) : [{ box: null }];
  for (const face of faces) {
    if (target) face.small = Math.min(face.box[2] - face.box[0], face.box[3] - face.box[1]) < least;
    const matrix = target ? similarity(face.landmarks, target) : inTheMiddle(image, crop);
    if (!face.small) face.crop = cut(image, matrix, crop);
  }
  const asked = faces.filter((face) => face.crop);
  if (asked.length) {
    const { size, mean, std } = about;
    const normalised = (value, channel) => (value / 255 - mean[channel]) / std[channel];
    const input = new Float32Array(asked.length * 3 * size * size);
    asked.forEach((face, k) => {
      input.set(planes(resized(face.crop, size, size, LINEAR), [0, 1, 2], normalised), k * 3 * size * size);
    });
    const { probabilities, maps } = await student.run({
      faces: new ort.Tensor('float32', input, [asked.length, 3, size, size]),
    });
    const part = ({ data }, k) => data.slice(...[k, k + 1].map((end) => (end * data.length) / asked.length));
    asked.forEach((face, k) => {
      face.probabilities = part(probabilities, k);
      if (maps) face.maps = { data: part(maps, k), height: maps.dims[2], width: maps.dims[3] };
    });
  }
  return faces;
}

/** For a student of images that were aligned already: all of the picture in the middle of the crop. */
function inTheMiddle({ width, height }, crop) {
  const scale = crop / Math.max(width, height);
  return [scale, 0, (crop - scale * width) / 2, (crop - scale * height) / 2];
}

/** The map of a class over a face, the face in grey: from blue, the map's least value, to red, its greatest. */
export function overlaid(face, maps, label) {
  const values = maps.data.subarray(label * maps.width * maps.height, (label + 1) * maps.width * maps.height);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const small = blank(maps.width, maps.height);
  values.forEach((value, k) => (small.data[4 * k] = high > low ? (255 * (value - low)) / (high - low) : 0));
  const heat = resized(small, face.width, face.height, CUBIC);
  const out = blank(face.width, face.height);
  for (let k = 0; k < out.data.length; k += 4) {
    const grey = 0.299 * face.data[k] + 0.587 * face.data[k + 1] + 0.114 * face.data[k + 2];
    for (let channel = 0; channel < 3; channel++) {
      const strength = clamp(1.5 - Math.abs((4 * heat.data[k]) / 255 - 3 + channel), 0, 1);
      out.data[k + channel] = 0.55 * grey + 0.45 * 255 * strength;
    }
    out.data[k + 3] = 255;
  }
  return out;
}

// --- the page

const element = (id) => document.getElementById(id);
const [file, camera, map, picture, video, list] = ['file', 'camera', 'map', 'picture', 'video', 'faces'].map(element);
const paint = picture.getContext('2d');

const MAX_PIXELS = 89478485; // as in data/photos.py

let networks = null;
let faces = []; // of the picture that is shown
let stream = null; // the camera's, while it is on
let turn = 0; // of what is to be shown: something newer makes older work void
let work = Promise.resolve(); // the networks answer one picture after another

/** A sentence that the person can do something about. */
class Told extends Error {}

function say(text, wrong = false) {
  element('status').textContent = text;
  element('status').classList.toggle('wrong', wrong);
}

function complain(error) {
  say(error instanceof Told ? error.message : `Something went wrong that should not: ${error.message ?? error}.`, true);
  if (!(error instanceof Told)) console.error(error);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const counted = (count) => `${count} ${count === 1 ? 'face' : 'faces'}`;

async function load() {
  say('Loading the networks …');
  const [retinaface, bytes] = await Promise.all(['retinaface.onnx', 'student.onnx'].map(fetched));
  const about = understood(bytes);
  const start = (model) => ort.InferenceSession.create(model, { executionProviders: ['wasm'] });
  networks = { detector: await start(retinaface), student: await start(bytes), about };
  const maps = networks.student.outputNames.includes('maps');
  const choices = ['none', 'of the most probable', ...about.classes.map((name) => `of ${name}`)];
  const offered = maps ? choices : ['not in this student'];
  map.replaceChildren(...offered.map((text, k) => new Option(text, String(k - 2))));
  if (maps) map.value = '-1';
  map.disabled = !maps;
  file.disabled = camera.disabled = false;
  say('Ready.');
}

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Told(`${name} is missing beside this page; make web puts it there.`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** What the student's file says about itself. */
function understood(bytes) {
  const found = metadata(bytes);
  if (found.format !== 'efficientface onnx' || found.version !== '1' || !found.alignment) {
    throw new Told('student.onnx was not written by this version of fer export; export the student again.');
  }
  const names = ['classes', 'size', 'mean', 'std', 'alignment'];
  return Object.fromEntries(names.map((name) => [name, JSON.parse(found[name])]));
}

/** The pixels of what a browser can draw, over white. */
function pixels(source, width, height) {
  const canvas = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  canvas.fillStyle = '#ffffff';
  canvas.fillRect(0, 0, width, height);
  canvas.drawImage(source, 0, 0);
  return canvas.getImageData(0, 0, width, height);
}

/** Show a picture called `name` with what the networks say, unless something newer was asked for in the meantime. */
async function show(image, name, mine) {
  const found = await analysed(networks, image);
  if (mine !== turn) return;
  faces = found;
  picture.width = image.width;
  picture.height = image.height;
  paint.putImageData(image, 0, 0);
  faces.forEach(frame);
  const text = `${name}: ${counted(faces.length)} in ${image.width} x ${image.height} pixels`;
  element('caption').textContent = text;
  picture.setAttribute('aria-label', text);
  describe();
}

/** A box around a face and its number, if there are several. */
function frame({ box, small }, k) {
  if (!box) return;
  const unit = Math.max(picture.width, picture.height) / 320;
  for (const [colour, width] of [['#ffffff', 4], [small ? '#59626c' : '#0072b2', 2]]) {
    paint.strokeStyle = colour;
    paint.lineWidth = Math.max(1, width * unit / 2);
    paint.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  }
  const [x, y, side] = [Math.max(box[0], 0), Math.max(box[1], 0), 14 * unit];
  paint.fillStyle = '#0072b2';
  paint.fillRect(x, y, side, side);
  paint.fillStyle = '#ffffff';
  paint.font = `bold ${0.8 * side}px sans-serif`;
  paint.textAlign = 'center';
  paint.textBaseline = 'middle';
  paint.fillText(String(k + 1), x + side / 2, y + side / 2);
}

/** The list of faces; rows that are there already are filled anew, so that the bars of a camera's faces move. */
function describe() {
  while (list.children.length > faces.length) list.lastElementChild.remove();
  while (list.children.length < faces.length) list.append(element('face').content.cloneNode(true));
  faces.forEach((face, k) => describeFace(list.children[k], face, k));
}

function describeFace(item, face, k) {
  item.querySelector('.box').textContent = face.box ? `box ${face.box.map(Math.round).join(' ')}` : 'the whole picture';
  item.querySelector('.answer').hidden = !face.probabilities;
  if (!face.probabilities) {
    const least = networks.about.alignment.min_face;
    item.querySelector('h2').textContent = `${k + 1}: too small, less than ${least} pixels`;
    return;
  }
  const { classes } = networks.about;
  const first = face.probabilities.indexOf(Math.max(...face.probabilities));
  item.querySelector('h2').textContent = `${k + 1}: ${classes[first]} ${percent(face.probabilities[first])}`;
  const body = item.querySelector('tbody');
  classes.forEach((name, label) => {
    const row = body.rows[label] ?? newRow(body, name);
    row.classList.toggle('first', label === first);
    row.querySelector('.bar').style.setProperty('--share', percent(face.probabilities[label]).replace(' ', ''));
    row.querySelector('.share').textContent = percent(face.probabilities[label]);
  });
  const of = map.value === '-1' ? first : Number(map.value);
  const crop = item.querySelector('.crop');
  crop.width = face.crop.width;
  crop.height = face.crop.height;
  const mapped = face.maps && of >= 0;
  const drawn = mapped ? overlaid(face.crop, face.maps, of) : face.crop;
  crop.getContext('2d').putImageData(new ImageData(drawn.data, drawn.width), 0, 0);
  const over = mapped ? `, under the class activation map of ${classes[of]}` : '';
  crop.setAttribute('aria-label', `Face ${k + 1} as the student sees it, upright${over}`);
}

function newRow(body, name) {
  const row = body.insertRow();
  const head = document.createElement('th');
  head.scope = 'row';
  head.textContent = name;
  const bar = document.createElement('div');
  bar.className = 'bar';
  row.append(head);
  for (const name of ['track', 'share']) row.insertCell().className = name;
  row.querySelector('.track').append(bar);
  return row;
}

/** Do something after all before it, unless something newer was asked for in the meantime. */
function next(task) {
  const mine = ++turn;
  work = work.then(() => (mine === turn ? task(mine) : null)).catch(complain);
  return work;
}

function open(blob) {
  if (!networks) return;
  if (!blob) return say('That was no file; drop a picture, or choose one.', true);
  stopCamera();
  next(async (mine) => {
    say(`Looking at ${blob.name} …`);
    const image = await createImageBitmap(blob, { colorSpaceConversion: 'none' }).catch(() => null);
    if (!image) throw new Told(`${blob.name} is not a picture that this browser can read.`);
    if (image.width * image.height > MAX_PIXELS) throw new Told(`${blob.name} is too large; shrink it.`);
    await show(pixels(image, image.width, image.height), blob.name, mine);
    if (mine !== turn) return;
    say(faces.length ? `Found ${counted(faces.length)}.` : `No face was found in ${blob.name}.`, !faces.length);
  });
}

const REFUSED = {
  NotAllowedError: 'The camera was refused; allow it for this page in the browser, then try again.',
  NotFoundError: 'No camera was found; connect one, then try again.',
  NotReadableError: 'The camera cannot be read; close other programs that use it, then try again.',
};

async function startCamera() {
  if (!navigator.mediaDevices) throw new Told('Browsers lend the camera only to pages from localhost or https.');
  const wanted = { video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: 'user' } };
  const given = await navigator.mediaDevices.getUserMedia(wanted).catch((error) => {
    throw new Told(REFUSED[error.name] ?? `The camera does not start: ${error.message}.`);
  });
  stopCamera(); // one that was asked for before
  stream = given;
  stream.getVideoTracks()[0].addEventListener('ended', () => {
    stopCamera();
    say('The camera is gone.', true);
  });
  camera.textContent = 'Stop the camera';
  video.srcObject = stream;
  await video.play().catch((error) => {
    if (stream === given) throw error; // else it was stopped before it had begun
  });
  say('The camera is on.');
  while (stream === given) {
    await next((mine) => show(pixels(video, video.videoWidth, video.videoHeight), 'camera', mine));
    await new Promise(requestAnimationFrame); // not while the page is hidden
  }
}

function stopCamera() {
  if (!stream) return;
  stream.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  turn++;
  camera.textContent = 'Use the camera';
  say('The camera is off.');
}

file.addEventListener('change', () => {
  if (file.files.length) open(file.files[0]);
  file.value = ''; // so that the same picture can be chosen again
});
camera.addEventListener('click', () => (stream ? stopCamera() : startCamera().catch(complain)));
map.addEventListener('change', describe);
for (const kind of ['dragover', 'dragleave', 'drop']) {
  // anywhere on the page: a picture that misses the frame would replace the page
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element('drop').classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') open(event.dataTransfer.files[0]);
  });
}
load().catch(complain);
