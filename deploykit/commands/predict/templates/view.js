// What the gallery shows. It stands in the address, so that a view can be linked to and kept:
// #filter=wrong&class=dog&sort=margin

const DEFAULT_VIEW = {
  filter: "all",
  class: "",
  expected: "",
  missing: "",
  extra: "",
  status: "",
  q: "",
  // Where not every photo has its thumbnail, those that are looked for most have.
  sort: byId("some-thumbnails") ? "margin" : "name",
  page: "1",
};

const FILTERS = new Map([
  ["all", { title: "All", accepts: () => true }],
  ["right", { title: "Right", accepts: (row) => row.right }],
  ["wrong", { title: "Wrong", accepts: (row) => row.wrong }],
  ["missing", { title: "Missing", accepts: (row) => row.missing.length > 0, several: true }],
  ["extra", { title: "Extra", accepts: (row) => row.extra.length > 0, several: true }],
  ["failed", { title: "Failed", accepts: (row) => row.failed }],
]);

const byName = (a, b) => a.index - b.index;

/** Compare by a number, those without one last. */
const byNumber = (keyOf) => (a, b) =>
  a.failed || b.failed ? a.failed - b.failed || byName(a, b) : keyOf(a) - keyOf(b) || byName(a, b);

const ORDERS = new Map([
  ["name", byName],
  ["margin", byNumber((row) => row.margin)],
  ["surest", byNumber((row) => -row.margin)],
  ["probability", byNumber((row) => row.probability)],
]);

/** The view that a hash names; what it does not name, or names wrongly, is the default. */
const parseView = (hash) => {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const view = { ...DEFAULT_VIEW };
  for (const key of Object.keys(view)) {
    view[key] = given.get(key) ?? view[key];
  }
  if (!FILTERS.has(view.filter)) view.filter = DEFAULT_VIEW.filter;
  if (!ORDERS.has(view.sort)) view.sort = DEFAULT_VIEW.sort;
  return view;
};

/** The hash of a view, with only what differs from the default. */
const hashOf = (changes) => {
  const differing = Object.entries(changes).filter(([key, value]) => value !== DEFAULT_VIEW[key]);
  // A hash without any "=" is a link to a place on the page.
  return "#" + (new URLSearchParams(differing).toString() || "filter=all");
};

/** The rows that a view shows, all its pages together. */
const rowsOf = (view) => {
  const { accepts } = FILTERS.get(view.filter);
  const wanted = view.q.toLowerCase();
  return rows
    .filter(
      (row) =>
        accepts(row) &&
        (view.class === "" || row.given.includes(view.class)) &&
        (view.expected === "" || (row.truth ?? []).includes(view.expected)) &&
        (view.missing === "" || row.missing.includes(view.missing)) &&
        (view.extra === "" || row.extra.includes(view.extra)) &&
        (view.status === "" || row.status === view.status) &&
        (wanted === "" || row.name.toLowerCase().includes(wanted)),
    )
    .sort(ORDERS.get(view.sort));
};
