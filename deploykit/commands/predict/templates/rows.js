// The rows as objects, decoded from the short form that the page carries.

const labels = readJson("labels-data");
const photosUrl = readJson("photos-url-data");
const thumbnails = new Map(readJson("thumbnails-data"));

// Whether a photo may be given several labels, each label's threshold, and what a margin is.
const head = readJson("head-data");

/** The labels of a number or of a list of them; null where none is known. */
const labelsAt = (places) => (places === null ? null : [places].flat().map((i) => labels[i]));

/** What one list of labels has and another does not. */
const without = (some, others) => some.filter((label) => !others.includes(label));

/**
 * `[path, expected, class, probability, margin, class_1, probability_1, ...]`, or a failure. A
 * photo has one label of each kind, or any number: `given`, and `truth` where it is known.
 */
const decodeRow = ([name, expected, answer, ...rest], index) => {
  const row = { index, name, truth: labelsAt(expected), given: [], missing: [], extra: [] };
  if (typeof answer === "string") {
    return { ...row, failed: true, wrong: false, right: false, status: answer, reason: rest[0] };
  }
  const [probability, margin, ...ranked] = rest;
  const given = labelsAt(answer);
  const missing = without(row.truth ?? [], given);
  const extra = row.truth === null ? [] : without(given, row.truth);
  const wrong = missing.length + extra.length > 0;
  const right = row.truth !== null && !wrong;
  return { ...row, failed: false, given, missing, extra, wrong, right, probability, margin, ranked };
};

/** What a list of labels is called. */
const titleOf = (some) => (some.length === 0 ? ["none"] : [stranger(some.join(", "))]);

const rows = readJson("rows-data").map(decodeRow);
const labelled = rows.some((row) => row.right || row.wrong);

/** The best k answers of a row as `{ label, probability }`, best first. */
const rankingOf = (row) => {
  const answers = [];
  for (let i = 0; i < row.ranked.length; i += 2) {
    answers.push({ label: labels[row.ranked[i]], probability: row.ranked[i + 1] });
  }
  return answers;
};

/** How many items there are under each key. */
const countBy = (items, keyOf) => {
  const counts = new Map();
  for (const item of items) {
    const key = keyOf(item);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
};

// Of a file list an absolute path, and what may have been escaped because it is not Unicode.
const UNLINKED = /^\/|^[a-z]:|\\/i;

/** Where the photo itself is, seen from the page; null where its name does not lead there. */
const urlOf = (row) =>
  UNLINKED.test(row.name) || !row.name.isWellFormed()
    ? null
    : photosUrl + row.name.split("/").map(encodeURIComponent).join("/");

/** Show a row's thumbnail in an image element, or in words why there is none. */
const showPicture = (row, image, words) => {
  const jpeg = thumbnails.get(row.index);
  image.hidden = !jpeg;
  words.hidden = Boolean(jpeg);
  if (jpeg) {
    image.src = "data:image/jpeg;base64," + jpeg;
    image.alt = visible(row.name);
  } else {
    const gone = row.failed || jpeg === null;
    words.textContent = gone ? "cannot be shown" : "no thumbnail";
  }
};
