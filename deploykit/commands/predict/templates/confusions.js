// Which classes are taken for which. A number leads to its photos.

const MOST_MATRIX_CLASSES = 20;
const MOST_PAIRS = 40;

/** How many photos of each expected class have each label, as a map of maps. */
const countConfusions = () => {
  const counts = new Map();
  for (const { truth, given } of rows.filter((row) => row.right || row.wrong)) {
    const [expected, label] = [truth[0], given[0]];
    const ofExpected = counts.get(expected) ?? counts.set(expected, new Map()).get(expected);
    ofExpected.set(label, (ofExpected.get(label) ?? 0) + 1);
  }
  return counts;
};

const matrixCell = (expected, label, counts) => {
  const count = counts.get(expected)?.get(label) ?? 0;
  if (count === 0) return make("td", { className: "none" }, "·");
  const total = [...counts.get(expected).values()].reduce((a, b) => a + b);
  const words = `${plural(count, "photo")} of ${visible(expected)}, predicted as ${visible(label)}`;
  const link = make(
    "a",
    { href: hashOf({ expected, class: label }), title: words, ariaLabel: words },
    formatCount(count),
  );
  const cell = make("td", { className: expected === label ? "right" : "wrong" }, link);
  cell.style.setProperty("--share", count / total);
  return cell;
};

const matrixTable = (counts, classes) => {
  const header = classes.map((label) =>
    make("th", { scope: "col" }, make("span", {}, stranger(label))),
  );
  const lines = classes.map((expected) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, stranger(expected)),
      ...classes.map((label) => matrixCell(expected, label, counts)),
    ),
  );
  return make(
    "table",
    { className: "matrix" },
    make(
      "thead",
      {},
      make("tr", {}, make("td", { className: "corner" }, "expected ↓ predicted →"), ...header),
    ),
    make("tbody", {}, ...lines),
  );
};

const pairsTable = (counts) => {
  const wrong = [...counts].flatMap(([expected, ofExpected]) =>
    [...ofExpected]
      .filter(([label]) => label !== expected)
      .map(([label, count]) => ({ expected, label, count })),
  );
  if (wrong.length === 0) return make("p", {}, "No photo was taken for one of another class.");
  const lines = wrong
    .sort((a, b) => b.count - a.count)
    .slice(0, MOST_PAIRS)
    .map(({ expected, label, count }) => {
      const link = make("a", { href: hashOf({ expected, class: label }) }, formatCount(count));
      return make(
        "tr",
        {},
        make("td", {}, stranger(expected)),
        make("td", {}, stranger(label)),
        make("td", { className: "number" }, link),
      );
    });
  const titles = ["expected", "predicted", "photos"].map((title) =>
    make("th", { scope: "col" }, title),
  );
  titles.at(-1).className = "number";
  return make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...titles)),
    make("tbody", {}, ...lines),
  );
};

/** The confusions as a title and a table: a matrix, or the most frequent ones of many classes. */
const confusionsTable = (classes) => {
  const counts = countConfusions();
  return classes.length <= MOST_MATRIX_CLASSES
    ? ["Confusion matrix", matrixTable(counts, classes)]
    : ["Taken for each other most often", pairsTable(counts)];
};
