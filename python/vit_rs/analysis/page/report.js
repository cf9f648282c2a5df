// The explorer of the report. Letters: H heads, T tokens = P prefix tokens + N patches (gh x gw, row by row).
// What is in view is also in the address: #image=0&layer=3&head=mean&query=5, where image and query (a token, prefix
// tokens first) are counted from 0, and layer and head are the numbers that the page shows.
(() => {
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("explorer-data").textContent);
const [imageHeight, imageWidth] = data.image;
const [gh, gw] = data.grid;
const [tokenHeight, tokenWidth] = data.token; // pixels of the image from patch to patch
const H = data.heads;
const P = data.prefix.length;
const N = gh * gw;
const T = P + N;
const hasImages = data.images.length > 0;
const CACHE_BYTES = 2 ** 27;
// Pixels of a canvas to a pixel of the image: sharp lines on screens of two pixels to a CSS pixel.
const ZOOM = Math.max(1, Math.ceil(896 / Math.max(imageHeight, imageWidth)));

// matplotlib's viridis at 33 even steps: within 2/255 of it in between.
const VIRIDIS = [
  "440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d2f6a8e2c728e297a8e26818e23898e21908c",
  "1f988b1f9f8821a68528ae8031b57b3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725",
].join("").match(/../g).map((pair) => parseInt(pair, 16));
const STEPS = VIRIDIS.length / 3 - 1;

function paint(pixels, at, share) { // share 0..1 of the scale
  const place = Math.min(Math.max(share, 0), 1) * STEPS;
  const step = Math.min(Math.floor(place), STEPS - 1);
  for (let c = 0; c < 3; c += 1) {
    const low = VIRIDIS[3 * step + c];
    pixels[at + c] = Math.round(low + (place - step) * (VIRIDIS[3 * step + 3 + c] - low));
  }
  pixels[at + 3] = 255;
}

// ---- Data: unpacked when first needed -------------------------------------------------------------------------------

async function unpack(id, bytes) {
  const text = atob($(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  if (buffer.byteLength !== bytes) throw new Error(`${id}: expected ${bytes} bytes, got ${buffer.byteLength}`);
  return buffer;
}

const unpacked = new Map(); // id -> {bytes, buffer: a promise}, the one used last at the end
let held = 0; // bytes of all of them

function remembered(id, bytes) {
  const known = unpacked.get(id) || { bytes, buffer: unpack(id, bytes) };
  held += unpacked.delete(id) ? 0 : bytes;
  unpacked.set(id, known);
  for (const [oldest, entry] of unpacked) {
    if (held <= CACHE_BYTES || oldest === id) break;
    unpacked.delete(oldest);
    held -= entry.bytes;
  }
  return known.buffer;
}

async function attention(image, layer) {
  const buffer = await remembered(`attention-${image}-${layer}`, H * T * (4 + T));
  return { maxima: new Float32Array(buffer, 0, H * T), codes: new Uint8Array(buffer, 4 * H * T) };
}

async function similarity(table) {
  return new Int16Array(await remembered(`similarity-${table}`, 2 * N * N));
}

function rowOf({ maxima, codes }, head, query) { // the weights of a query to all T tokens
  const row = new Float64Array(T);
  const heads = head === "mean" ? [...Array(H).keys()] : [head - 1];
  for (const h of heads) {
    const start = (h * T + query) * T;
    const scale = maxima[h * T + query] / (255 * 255 * heads.length);
    for (let t = 0; t < T; t += 1) row[t] += scale * codes[start + t] ** 2;
  }
  return row;
}

// ---- State ----------------------------------------------------------------------------------------------------------

const state = {
  image: 0,
  layer: data.layers.length - 1, // its place in data.layers
  head: "mean",
  query: P + Math.floor(gh / 2) * gw + Math.floor(gw / 2),
  table: 0,
};
let lastPatch = state.query;
let pointed = null; // the patch under the pointer
// What the canvases show, which is behind `state` while data are unpacked:
// {image, query, row: weights to all tokens, best: the patch's token that has most, similarities}
let shown = null;

function address() {
  const parts = [];
  if (hasImages) parts.push(`image=${state.image}`, `layer=${data.layers[state.layer]}`, `head=${state.head}`);
  parts.push(`query=${state.query}`);
  if (data.similarities.length > 1) parts.push(`table=${state.table}`);
  return parts.join("&");
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const whole = (key, low, high) => {
    const text = asked.get(key);
    return text !== null && /^\d{1,9}$/.test(text) && Number(text) >= low && Number(text) <= high ? Number(text) : null;
  };
  state.image = whole("image", 0, data.images.length - 1) ?? state.image;
  const layer = data.layers.indexOf(whole("layer", 1, 1e9));
  if (layer >= 0) state.layer = layer;
  state.head = asked.get("head") === "mean" ? "mean" : whole("head", 1, H) ?? state.head;
  state.query = whole("query", hasImages ? 0 : P, T - 1) ?? state.query;
  state.table = whole("table", 0, data.similarities.length - 1) ?? state.table;
}

let writing = 0;
function writeAddress() { // browsers allow few changes a second
  clearTimeout(writing);
  writing = setTimeout(() => {
    try {
      history.replaceState(null, "", `#${address()}`);
    } catch {
      // The page works without its address.
    }
  }, 200);
}

// ---- Drawing --------------------------------------------------------------------------------------------------------

const scratch = document.createElement("canvas");
scratch.width = gw;
scratch.height = gh;

function mapOf(values, start, scale, offset = 0) { // N values -> a picture of gh x gw
  const picture = new ImageData(gw, gh);
  for (let n = 0; n < N; n += 1) paint(picture.data, 4 * n, values[start + n] * scale + offset);
  return picture;
}

function drawMap(canvas, map, opacity, image) {
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (image) {
    context.imageSmoothingEnabled = ZOOM < 8; // the few pixels of a small image are seen as they are
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  scratch.getContext("2d").putImageData(map, 0, 0);
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(scratch, 0, 0, gw * tokenWidth * ZOOM, gh * tokenHeight * ZOOM);
  context.globalAlpha = 1;
  if (pointed !== null) outline(context, pointed, 1);
  if (shown.query >= P) outline(context, shown.query - P, 2);
}

function outline(context, patch, weight) {
  const unit = Math.max(1, context.canvas.width / 450) * weight;
  const x = (patch % gw) * tokenWidth * ZOOM;
  const y = Math.floor(patch / gw) * tokenHeight * ZOOM;
  for (const [color, inset] of [["#fff", 0.5], ["#000", 1.5]]) {
    context.strokeStyle = color;
    context.lineWidth = unit;
    context.strokeRect(x + inset * unit, y + inset * unit, tokenWidth * ZOOM - 2 * inset * unit, tokenHeight * ZOOM - 2 * inset * unit);
  }
}

function draw() {
  if (shown === null) return;
  const opacity = Number($("opacity").value);
  if (hasImages) {
    const image = $(`image-${shown.image}`);
    drawMap($("attention"), mapOf(shown.row, P, 1 / (shown.row[shown.best] || 1)), opacity, image);
    const { rollout } = data.images[shown.image];
    $("rollout-panel").hidden = !rollout;
    if (rollout) {
      const most = rollout.reduce((a, b) => Math.max(a, b), 0);
      $("rollout-end").textContent = number(most);
      drawMap($("rollout"), mapOf(rollout, 0, 1 / (most || 1)), opacity, image);
    }
  }
  if (data.similarities.length) {
    $("similarity-panel").classList.toggle("empty", shown.query < P);
    const start = (shown.query - P) * N;
    const map = shown.query < P ? new ImageData(gw, gh) : mapOf(shown.similarities, start, 0.5 / 32767, 0.5);
    drawMap($("similarity"), map, 1, null);
  }
}

// ---- Words ----------------------------------------------------------------------------------------------------------

const number = (value) => (value === 0 ? "0" : value >= 1e-4 ? String(Number(value.toPrecision(3))) : value.toExponential(1));
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const placeOf = (patch) => ({ row: Math.floor(patch / gw) + 1, column: (patch % gw) + 1 });
const nameOf = (token) => {
  if (token < P) return data.prefix[token];
  const { row, column } = placeOf(token - P);
  return `row ${row}, column ${column}`;
};

function say(id, text, values = {}) {
  const element = $(id);
  element.textContent = text;
  for (const key of Object.keys(element.dataset)) if (key !== "query") delete element.dataset[key];
  for (const [key, value] of Object.entries(values)) element.dataset[key] = value;
}

function sayReadings() {
  for (const element of document.querySelectorAll("[data-query]")) element.textContent = nameOf(shown.query);
  if (!hasImages) return;
  const { row, best } = shown;
  say("maximum", `${number(row[best])} at ${nameOf(best)}`, { weight: row[best], ...placeOf(best - P) });
  let prefix = 0;
  for (let t = 0; t < P; t += 1) prefix += row[t];
  const each = P > 1 ? ` (${data.prefix.map((name, t) => `${name} ${percent(row[t])}`).join(", ")})` : "";
  say("prefix-share", percent(prefix) + each, { share: prefix, shares: Array.from(row.subarray(0, P)).join(" ") });
  if (shown.query < P) {
    say("distance", `none: ${nameOf(shown.query)} has no place in the image`);
  } else {
    // The paper's: weights to the prefix tokens are cut and the rest is not made to sum to 1 again.
    let distance = 0;
    const from = placeOf(shown.query - P);
    for (let n = 0; n < N; n += 1) {
      const to = placeOf(n);
      const [down, across] = [tokenHeight * (to.row - from.row), tokenWidth * (to.column - from.column)];
      distance += row[P + n] * Math.hypot(down, across);
    }
    say("distance", `${distance.toFixed(1)} px`, { distance });
  }
  $("attention-end").textContent = number(row[best]);
}

function sayPointer() {
  if (pointed === null || shown === null) {
    say("pointer", "–");
    return;
  }
  const values = placeOf(pointed);
  const parts = [];
  if (hasImages) {
    values.weight = shown.row[P + pointed];
    parts.push(`weight ${number(values.weight)}`);
  }
  if (shown.similarities && shown.query >= P) {
    values.similarity = shown.similarities[(shown.query - P) * N + pointed] / 32767;
    parts.push(`position similarity ${values.similarity.toFixed(3).replace("-", "−")}`);
  }
  say("pointer", `${nameOf(P + pointed)}: ${parts.join(", ") || "–"}`, values);
}

function showControls() {
  $("layer").value = state.layer;
  $("layer-number").textContent = data.layers[state.layer] ?? "";
  $("layer").setAttribute("aria-valuetext", `layer ${data.layers[state.layer]}`);
  $("heads-layer").textContent = data.layers[state.layer] ?? "";
  $("head").value = state.head;
  $("table").value = state.table;
  const choice = document.querySelector(`#images input[value="${state.image}"]`);
  if (choice) choice.checked = true;
  for (const button of $("queries").children) button.setAttribute("aria-pressed", button.value === String(state.query));
  for (const button of $("heads").children) button.setAttribute("aria-pressed", button.value === String(state.head));
}

function drawHeads(weights) {
  for (const button of $("heads").children) {
    const row = rowOf(weights, button.value === "mean" ? "mean" : Number(button.value), state.query);
    let most = 0;
    for (let t = P; t < T; t += 1) most = Math.max(most, row[t]);
    button.firstChild.getContext("2d").putImageData(mapOf(row, P, 1 / (most || 1)), 0, 0);
  }
}

let turn = 0;
async function render() {
  turn += 1;
  const mine = turn;
  if (state.query >= P) lastPatch = state.query;
  showControls();
  try {
    const next = { image: state.image, query: state.query, row: null, best: P, similarities: null };
    let weights = null;
    if (data.similarities.length) next.similarities = await similarity(state.table);
    if (hasImages) {
      weights = await attention(state.image, state.layer);
      const image = $(`image-${state.image}`);
      if (!image.complete) await image.decode();
    }
    if (mine !== turn) return; // something else was asked meanwhile
    if (hasImages) {
      next.row = rowOf(weights, state.head, state.query);
      for (let t = P; t < T; t += 1) if (next.row[t] > next.row[next.best]) next.best = t;
    }
    shown = next;
    sayReadings();
    sayPointer();
    draw();
    if (hasImages) drawHeads(weights);
    complain("");
    $("explorer").dataset.rendered = address();
  } catch (error) {
    if (mine === turn) complain(`The explorer's data cannot be read: ${error.message}`);
  }
}

function complain(text) { // of nothing: take the complaint back
  $("message").textContent = text;
  $("message").hidden = text === "";
}

// ---- Input ----------------------------------------------------------------------------------------------------------

function change(key, value) {
  state[key] = value;
  render();
  writeAddress();
}

function patchAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * imageWidth / tokenWidth);
  const row = Math.floor(((event.clientY - box.top) / box.height) * imageHeight / tokenHeight);
  return row >= 0 && row < gh && column >= 0 && column < gw ? row * gw + column : null;
}

function point(patch) {
  if (patch === pointed) return;
  pointed = patch;
  sayPointer();
  requestAnimationFrame(draw);
}

function moveQuery(down, across) {
  const patch = lastPatch - P;
  const row = Math.min(Math.max(Math.floor(patch / gw) + down, 0), gh - 1);
  const column = Math.min(Math.max((patch % gw) + across, 0), gw - 1);
  change("query", state.query < P ? lastPatch : P + row * gw + column);
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function onKey(event) {
  const { target, key } = event;
  // AltGr (seen as Ctrl and Alt) and Option (seen as Alt) are how some keyboards give brackets.
  const bracket = key === "[" || key === "]";
  if (event.metaKey || (event.ctrlKey && !event.getModifierState("AltGraph")) || (event.altKey && !bracket)) return;
  if (target !== document.body && !$("explorer").contains(target)) return;
  if (key in ARROWS) {
    if (!target.closest("#panels canvas, #queries button")) return; // elsewhere arrows scroll, or move a slider
    moveQuery(...ARROWS[key]);
  } else if (hasImages && bracket) {
    change("layer", Math.min(Math.max(state.layer + (key === "]" ? 1 : -1), 0), data.layers.length - 1));
  } else if (hasImages && key.toLowerCase() === "h" && target.tagName !== "SELECT") {
    const place = (state.head === "mean" ? 0 : state.head) + (event.shiftKey ? H : 1);
    change("head", place % (H + 1) || "mean");
  } else {
    return;
  }
  event.preventDefault();
}

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

function build() {
  const colors = [];
  for (let step = 0; step <= STEPS; step += 1) colors.push(`rgb(${VIRIDIS.slice(3 * step, 3 * step + 3).join(",")})`);
  for (const bar of document.querySelectorAll(".bar")) bar.style.background = `linear-gradient(to right,${colors.join(",")})`;
  $("explorer").classList.toggle("no-images", !hasImages);
  for (const id of ["images", "attention-controls", "queries", "attention-panel"]) $(id).hidden = !hasImages;
  for (const part of document.querySelectorAll(".of-attention")) part.hidden = !hasImages;
  $("rollout-panel").hidden = !hasImages;
  $("similarity-panel").hidden = data.similarities.length === 0;
  $("table").hidden = data.similarities.length < 2;
  data.similarities.forEach((name, place) => $("table").append(element("option", name, { value: place })));
  if (P === 0) for (const part of [$("queries"), document.querySelector(".of-prefix")]) part.hidden = true;
  $("layer").max = Math.max(data.layers.length - 1, 0);
  for (const head of ["mean", ...Array(H).keys()].map((place) => (place === "mean" ? place : place + 1))) {
    $("head").append(element("option", head === "mean" ? "mean of heads" : `head ${head}`, { value: head }));
    const button = element("button", "", { type: "button", value: head });
    button.append(element("canvas", "", { width: gw, height: gh }), head === "mean" ? "mean" : `head ${head}`);
    button.addEventListener("click", () => change("head", head));
    $("heads").append(button);
  }
  data.prefix.forEach((name, token) => {
    const button = element("button", name, { type: "button", value: token });
    button.addEventListener("click", () => change("query", token));
    $("queries").append(button);
  });
  $("hint").append("Click a patch to make it the query, or move it with the arrow keys");
  if (hasImages) {
    $("hint").append("; ", element("kbd", "["), " and ", element("kbd", "]"), " change the layer, ", element("kbd", "h"), " the head");
  }
  $("hint").append(hasImages ? ". Each map has its own scale." : ".");
  for (const canvas of document.querySelectorAll("#panels canvas")) {
    canvas.width = imageWidth * ZOOM;
    canvas.height = imageHeight * ZOOM;
    canvas.addEventListener("click", (event) => {
      const patch = patchAt(canvas, event);
      if (patch !== null) change("query", P + patch);
    });
    canvas.addEventListener("pointermove", (event) => point(patchAt(canvas, event)));
    canvas.addEventListener("pointerleave", () => point(null));
  }
  $("images").addEventListener("change", (event) => change("image", Number(event.target.value)));
  $("layer").addEventListener("input", () => change("layer", Number($("layer").value)));
  $("head").addEventListener("change", () => change("head", $("head").value === "mean" ? "mean" : Number($("head").value)));
  $("table").addEventListener("change", () => change("table", Number($("table").value)));
  $("opacity").addEventListener("input", draw);
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => {
    if (location.hash.includes("=")) {
      readAddress();
      render();
    }
  });
  $("explorer-body").hidden = false;
}

if (typeof DecompressionStream === "undefined") {
  complain("This browser cannot unpack the explorer's data: Chrome 80, Firefox 113, Safari 16.4 and later ones can. The figures below need nothing.");
} else {
  build();
  readAddress();
  render();
}
})();
