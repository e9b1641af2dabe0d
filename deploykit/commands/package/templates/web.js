// The page: first the recorded images, then the visitor's photos, one after the other.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { compare, decide, probabilitiesOf, ranked } from "./answers.js";
import { decode, preprocess } from "./pixels.js";

const { labels, head, preprocessing, golden } = readJson("settings");
const [inputHeight, inputWidth] = preprocessing.input_size;
const MOST_SHOWN = 5;

// onnxruntime-web starts a thread from its own file; no other script may become a worker.
const RUNTIME = new URL("runtime/ort.wasm.bundle.min.mjs", document.baseURI).href;
globalThis.trustedTypes?.createPolicy("default", {
  createScriptURL: (url) => (new URL(url, document.baseURI).href === RUNTIME ? url : null),
});

/** Let the browser show what has changed. */
const painted = () => new Promise((done) => setTimeout(done, 0));

const namesOf = (decision) =>
  decision.length === 0
    ? ["none"]
    : decision.flatMap((i, at) => (at ? [", ", stranger(labels[i])] : [stranger(labels[i])]));

/** A part as people read it: 3.1 · 10⁻⁷ */
const formatSmall = (part) => {
  if (part === 0 || !Number.isFinite(part)) return String(part);
  const [digits, exponent] = part.toExponential(1).split("e");
  const raised = [...String(Number(exponent))].map((each) =>
    each === "-" ? "\u207b" : "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[each],
  );
  return `${digits}\u202f\u00b7\u202f10${raised.join("")}`;
};

/** Draw the deploy graph's pixels, (H, W, 3). */
const drawn = (pixels) => {
  const canvas = make("canvas", { width: inputWidth, height: inputHeight });
  const image = new ImageData(inputWidth, inputHeight);
  for (let i = 0; i < inputWidth * inputHeight; i += 1) {
    image.data.set(pixels.subarray(3 * i, 3 * i + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
};

const fetched = async (name, expectedBytes) => {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`The server answers ${response.status} to ${name}.`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (expectedBytes !== undefined && bytes.length !== expectedBytes) {
    throw new Error(`${name} has ${bytes.length} bytes, not ${expectedBytes}.`);
  }
  return bytes;
};

const judge = (kind, stamp, heading, ...sentences) => {
  const parity = byId("parity");
  parity.className = `verdict ${kind}`;
  parity.querySelector(".stamp").textContent = stamp;
  byId("parity-heading").textContent = heading;
  const lines = sentences.map((sentence) => make("p", { className: "lead" }, sentence));
  parity.querySelector("div").replaceChildren(byId("parity-heading"), ...lines);
};

const openSession = async () => {
  // Without isolation a browser shares no memory between threads.
  const threads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  ort.env.wasm.numThreads = threads;
  byId("threads").textContent = globalThis.crossOriginIsolated
    ? plural(threads, "thread")
    : "1 thread: the server does not isolate the page, so its threads could share no memory";
  const graph = await fetched("model.onnx");
  return ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
};

/** The logits of one image, (H, W, 3) bytes. */
const answer = async (session, pixels) => {
  const images = new ort.Tensor("uint8", pixels, [1, inputHeight, inputWidth, 3]);
  const { logits } = await session.run({ images });
  return logits.data;
};

const recordedFigure = (pixels, recorded, found, same) => {
  const caption = make("figcaption", {}, ...namesOf(decide(head, recorded)), " ");
  const verdict = same ? "same" : "changed";
  caption.append(make("span", { className: `badge ${same ? "good" : "bad"}` }, verdict));
  if (!same) caption.append(" to ", ...namesOf(decide(head, found)));
  return make("li", {}, make("figure", {}, drawn(pixels), caption));
};

/** Answer the recorded images, and say whether the answers are the recorded ones. */
const testParity = async (session) => {
  const size = 3 * inputHeight * inputWidth;
  const pixels = await fetched("golden/images.bin", golden.images * size);
  const bytes = await fetched("golden/logits.bin", golden.images * golden.logits * 4);
  const logits = new Float32Array(bytes.buffer);
  const cut = (values, length) =>
    Array.from({ length: golden.images }, (_, i) => values.slice(i * length, (i + 1) * length));
  const images = cut(pixels, size);
  const recorded = cut(logits, golden.logits);
  const found = [];
  for (const image of images) {
    found.push(await answer(session, image));
    const done = `${found.length} of ${plural(images.length, "recorded image")} answered`;
    judge("unproven", "Testing", done);
    await painted();
  }
  const { same, relative, passed } = compare(head, recorded, found, golden);
  byId("recorded").replaceChildren(
    ...images.map((image, i) => recordedFigure(image, recorded[i], found[i], same[i])),
  );
  const count = same.filter(Boolean).length;
  const [most, allowed] = [relative, golden.max_relative_error].map(formatSmall);
  judge(
    passed ? "passed" : "failed",
    passed ? "Passed" : "Failed",
    `${count} of ${plural(same.length, "recorded image")} decided the same in this browser`,
    `The largest difference of a logit is ${most} of the scale; ${allowed} is allowed.`,
    ...(passed ? [] : ["These are not the recorded answers, so this page takes no photos."]),
  );
  return passed;
};

const barOf = (place, probability) => {
  const bar = makeBar(probability);
  const threshold = head.kind === "multi-label" ? head.thresholds[place] : undefined;
  if (threshold === undefined) return make("span", { className: "limited" }, bar);
  const mark = make("span", { className: "threshold", title: `threshold ${threshold}` });
  mark.style.left = `${100 * threshold}%`;
  return make("span", { className: "limited" }, bar, mark);
};

const rankingOf = (logits) => {
  const probabilities = probabilitiesOf(head, logits);
  const decision = decide(head, logits);
  const places = ranked(head, logits);
  const shown = places.filter((place, at) => at < MOST_SHOWN || decision.includes(place));
  const items = shown.map((place) => {
    const item = make("li", {}, stranger(labels[place]), formatPercent(probabilities[place]));
    item.append(barOf(place, probabilities[place]));
    item.classList.toggle("given", decision.includes(place));
    return item;
  });
  return make("ol", { className: "ranking" }, ...items);
};

const figure = (content, caption) => make("figure", {}, content, make("figcaption", {}, caption));

const answerCard = async (session, file) => {
  const times = [performance.now()];
  const decoded = await decode(new Uint8Array(await file.arrayBuffer()));
  times.push(performance.now());
  const pixels = preprocess(decoded, preprocessing);
  times.push(performance.now());
  const logits = await answer(session, pixels.slice());
  times.push(performance.now());
  const [decoding, resizing, network] = [1, 2, 3].map((i) => Math.round(times[i] - times[i - 1]));
  const photo = make("img", { alt: "", src: URL.createObjectURL(file) });
  photo.addEventListener("load", () => URL.revokeObjectURL(photo.src));
  const size = `${decoded.width}\u00d7${decoded.height} pixels`;
  const spent = `decoded in ${decoding} ms, resized in ${resizing} ms, answered in ${network} ms`;
  const text = make(
    "div",
    {},
    make("h3", {}, ...namesOf(decide(head, logits))),
    rankingOf(logits),
    make("p", { className: "quiet" }, stranger(file.name), `: ${size}, ${spent}`),
  );
  if (!decoded.opaque) {
    const warning = "Parts of it are transparent: the colours there may not be those in the file.";
    text.append(make("p", { className: "warning" }, warning));
  }
  const seen = [figure(photo, "your photo"), figure(drawn(pixels), "what the network gets")];
  const left = make("div", { className: "seen" }, ...seen);
  return make("li", { className: "panel answer" }, left, text);
};

const takePhotos = (session) => {
  const drop = byId("drop");
  const input = drop.querySelector("input");
  const problem = byId("problem");
  let queue = Promise.resolve();
  const take = async (file) => {
    try {
      byId("answers").prepend(await answerCard(session, file));
    } catch (error) {
      const reason = `: this browser cannot read it (${visible(error.message)})`;
      problem.replaceChildren(stranger(file.name), reason);
      problem.hidden = false;
    }
    await painted();
  };
  const takeAll = (files) => {
    problem.hidden = true;
    for (const file of files) queue = queue.then(() => take(file));
  };
  input.disabled = false;
  input.addEventListener("change", () => {
    takeAll(input.files);
    input.value = "";
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    takeAll(event.dataTransfer.files);
  });
};

try {
  judge("unproven", "Loading", byId("parity-heading").textContent);
  const session = await openSession();
  if (await testParity(session)) takePhotos(session);
} catch (error) {
  const reason = visible(String(error.message ?? error));
  judge("failed", "Failed", "The model does not run in this browser", reason);
}
