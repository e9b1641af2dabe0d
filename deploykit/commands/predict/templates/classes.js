// How each class fares. A class leads to its photos.

// One a class, or none where nothing ranks photos: see Average precision in the manual.
const averagePrecisions = readJson("average-precisions-data");

/** A class's counts; recall and precision are null where there is nothing to divide by. */
const classCounts = () => {
  const judged = rows.filter((row) => row.right || row.wrong);
  const [predicted, judgedAs, expected, missing, extra] = [
    countLabels(rows, (row) => row.given),
    countLabels(judged, (row) => row.given),
    countLabels(judged, (row) => row.truth),
    countLabels(judged, (row) => row.missing),
    countLabels(judged, (row) => row.extra),
  ];
  return labels
    .map((label, i) => {
      const photos = expected.get(label) ?? 0;
      const hits = photos - (missing.get(label) ?? 0);
      return {
        label,
        predicted: predicted.get(label) ?? 0,
        expected: photos,
        missing: missing.get(label) ?? 0,
        extra: extra.get(label) ?? 0,
        recall: photos > 0 ? hits / photos : null,
        precision: judgedAs.has(label) ? hits / judgedAs.get(label) : null,
        averagePrecision: averagePrecisions[i] ?? null,
      };
    })
    .filter(({ predicted, expected }) => predicted > 0 || expected > 0);
};

const SHARES = {
  number: true,
  text: (part) => (part === null ? "–" : formatPercent(part)),
  bar: (part) => part,
};
const COUNTS = { number: true, text: formatCount };

const classColumns = (counts) =>
  labelled
    ? [
        { key: "label", title: "class" },
        { key: "expected", title: "photos", ...COUNTS },
        {
          key: "recall",
          title: "recall",
          hint: "of the photos of this class, the part that was recognised",
          ...SHARES,
        },
        {
          key: "precision",
          title: "precision",
          hint: "of the answers with this class, the part that was right",
          ...SHARES,
        },
        ...(averagePrecisions.some((value) => value !== null)
          ? [
              {
                key: "averagePrecision",
                title: "AP",
                hint: "average precision: the precision over all thresholds",
                ...SHARES,
              },
            ]
          : []),
        ...(head.several
          ? [
              {
                key: "missing",
                title: "missing",
                hint: "photos of this class that were not given it",
                linked: true,
                ...COUNTS,
              },
              {
                key: "extra",
                title: "extra",
                hint: "photos that were given this class and are not of it",
                linked: true,
                ...COUNTS,
              },
            ]
          : []),
      ]
    : [
        { key: "label", title: "class" },
        {
          key: "predicted",
          title: "photos",
          ...COUNTS,
          bar: (count) => count / Math.max(...counts.map((each) => each.predicted)),
        },
      ];

const valueCell = (column, count) => {
  if (!column.number) {
    const view = labelled ? { expected: count.label } : { class: count.label };
    return make("th", { scope: "row" }, make("a", { href: hashOf(view) }, stranger(count.label)));
  }
  const value = count[column.key];
  const shown =
    column.linked && value > 0
      ? make("a", { href: hashOf({ [column.key]: count.label }) }, column.text(value))
      : column.text(value);
  const cell = make("td", { className: "number" }, shown);
  if (column.bar && value !== null) cell.append(makeBar(column.bar(value)));
  return cell;
};

/** Compare two values, upwards by a sign of 1 and downwards by -1; what has none comes last. */
const compareValues = (a, b, sign) =>
  a === null || b === null ? (a === null) - (b === null) : sign * (Number(a > b) - Number(a < b));

/** A table of the classes that sorts by the column that is clicked. */
const classTable = (counts) => {
  const columns = classColumns(counts);
  const body = make("tbody");
  const fill = (sorted) =>
    body.replaceChildren(
      ...sorted.map((count) =>
        make("tr", {}, ...columns.map((column) => valueCell(column, count))),
      ),
    );
  const headers = columns.map((column) => {
    const button = make("button", { type: "button", title: column.hint ?? "" }, column.title);
    const header = make("th", { scope: "col", className: column.number ? "number" : "" }, button);
    button.addEventListener("click", () => {
      const descending = header.ariaSort === "ascending";
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.ariaSort = descending ? "descending" : "ascending";
      const sign = descending ? -1 : 1;
      fill(counts.toSorted((a, b) => compareValues(a[column.key], b[column.key], sign)));
    });
    return header;
  });
  fill(counts);
  return make("table", {}, make("thead", {}, make("tr", {}, ...headers)), body);
};

/** A table under its title, in a box that scrolls where it is too large. */
const scrolling = (title, table) => [
  make("h3", {}, title),
  make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: title }, table),
];

const showClasses = () => {
  if (rows.every((row) => row.failed)) return;
  const counts = classCounts();
  byId("classes").hidden = false;
  byId("class-table").append(
    ...scrolling(labelled ? "Class by class" : head.several ? "Labels given" : "Predicted classes", classTable(counts)),
  );
  // Of several labels none is taken for another: the table has what is missing and what is extra.
  const confusable = labelled && !head.several;
  byId("confusions").hidden = !confusable;
  if (!confusable) return;
  const classes = counts.map(({ label }) => label);
  byId("confusions").append(...scrolling(...confusionsTable(classes)));
};
