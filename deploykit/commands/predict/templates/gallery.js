// The gallery: one page of cards at a time, so that ten thousand photos are as quick as ten.

const CARDS_PER_PAGE = 60;
const MOST_CHIPS = 8;

const controls = byId("controls");
const gallery = { view: { ...DEFAULT_VIEW }, shown: [] };

/** A label and its probability; what is missing or too much is marked. */
const chipOf = (label, row, probabilities) => {
  const kind = ["missing", "extra"].find((each) => row[each].includes(label));
  const probability = probabilities.get(label);
  const value = probability === undefined ? "" : formatPercent(probability, 0);
  const chip = make("span", { className: "chip" }, stranger(label), make("small", {}, value));
  if (kind) chip.prepend(make("span", { className: "visually-hidden" }, `${kind}: `));
  chip.classList.add(kind ?? (row.right || row.wrong ? "correct" : "given"));
  return chip;
};

/** Chips of a row's labels: those it was given, best first, then those that are missing. */
const chipsOf = (row) => {
  const probabilities = new Map(
    rankingOf(row).map(({ label, probability }) => [label, probability]),
  );
  const all = [...row.given, ...row.missing];
  const chips = all.slice(0, MOST_CHIPS).map((label) => chipOf(label, row, probabilities));
  if (all.length > MOST_CHIPS) {
    chips.push(make("span", { className: "chip" }, `+${all.length - MOST_CHIPS}`));
  }
  return row.given.length > 0
    ? chips
    : [make("span", { className: "chip none" }, "no label"), ...chips];
};

/** What is wrong with an answer, in a few words; the chips say which of several labels. */
const wrongWords = ({ truth, missing, extra }) => {
  if (!head.several) return ["not ", stranger(truth[0])];
  if (extra.length === 0) return [`${missing.length} missing`];
  return missing.length === 0 ? [`${extra.length} extra`] : [`${missing.length + extra.length} wrong`];
};

const cardOf = (row, place) => {
  const card = byId("card-template").content.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  showPicture(row, find("img"), find(".no-picture"));
  find(".name").textContent = visible(row.name);
  find(".card").title = visible(row.name);
  find(".badge").hidden = !row.wrong;
  if (row.failed) {
    find(".card").classList.add("failed");
    find(".label").textContent = row.status;
    find(".detail").textContent = visible(row.reason);
  } else {
    find(".card").classList.toggle("wrong", row.wrong);
    if (head.several) {
      find(".answer").hidden = true;
      find(".chips").append(...chipsOf(row));
    } else {
      find(".label").textContent = visible(row.given[0]);
      find(".probability").textContent = formatPercent(row.probability);
      find(".answer").after(makeBar(row.probability));
    }
    find(".detail").textContent = `margin ${row.margin}`;
    if (row.wrong) find(".badge").append(...wrongWords(row));
  }
  find(".card").addEventListener("click", () => openPhoto(place));
  return card;
};

const lastPage = () => Math.max(1, Math.ceil(gallery.shown.length / CARDS_PER_PAGE));

const currentPage = () => {
  const page = Math.floor(Number(gallery.view.page));
  return page >= 1 ? Math.min(page, lastPage()) : 1;
};

const showControls = () => {
  for (const [name, value] of Object.entries(gallery.view)) {
    const control = controls.elements[name];
    if (control) control.value = value;
  }
};

const showPage = () => {
  const page = currentPage();
  const start = (page - 1) * CARDS_PER_PAGE;
  const cards = gallery.shown
    .slice(start, start + CARDS_PER_PAGE)
    .map((row, i) => cardOf(row, start + i));
  byId("cards").replaceChildren(...cards);
  byId("count").textContent =
    gallery.shown.length === rows.length
      ? plural(rows.length, "file")
      : `${formatCount(gallery.shown.length)} of ${plural(rows.length, "file")}`;
  if (gallery.view.status) byId("count").append(` (${visible(gallery.view.status)})`);
  for (const kind of ["missing", "extra"]) {
    const label = gallery.view[kind];
    if (label) byId("count").append(` (${kind}: `, stranger(label), ")");
  }
  byId("page-number").textContent = `Page ${formatCount(page)} of ${formatCount(lastPage())}`;
  byId("pager").hidden = lastPage() === 1;
  byId("pager").querySelector("[name=previous]").disabled = page === 1;
  byId("pager").querySelector("[name=next]").disabled = page === lastPage();
};

/** Show a view, from wherever it comes. */
const showView = (view) => {
  gallery.view = view;
  gallery.shown = rowsOf(view);
  showControls();
  showPage();
};

/** Change the view from the page itself; the address follows without a step in the history. */
const changeView = (changes) => {
  const view = { ...gallery.view, page: DEFAULT_VIEW.page, ...changes };
  history.replaceState(null, "", hashOf(view));
  showView(view);
};

const fillSelect = (select, everything, counts) => {
  const options = [...counts].map(([label, count]) =>
    make("option", { value: label }, `${visible(label)} (${formatCount(count)})`),
  );
  select.replaceChildren(make("option", { value: "" }, everything), ...options);
};

/** The labels of some rows with their counts, in the order of the model's classes. */
const countLabels = (counted, labelsOf) => {
  const counts = countBy(counted.flatMap(labelsOf), (label) => label);
  return new Map(
    labels.filter((label) => counts.has(label)).map((label) => [label, counts.get(label)]),
  );
};

const makeControls = () => {
  for (const [name, { title, accepts, several }] of FILTERS) {
    if (!labelled && name !== "all" && name !== "failed") continue;
    if (several && !head.several) continue;
    const count = rows.filter(accepts).length;
    const radio = make("input", { type: "radio", name: "filter", value: name });
    const text = make("span", {}, `${title} `, make("small", {}, formatCount(count)));
    controls.querySelector(".segments").append(make("label", {}, radio, text));
  }
  fillSelect(
    controls.elements.class,
    "any class",
    countLabels(rows, (row) => row.given),
  );
  fillSelect(
    controls.elements.expected,
    "any class",
    countLabels(rows, (row) => row.truth ?? []),
  );
  byId("expected-control").hidden = !labelled;
  controls.addEventListener("input", () =>
    // What no control shows does not outlive a change of those that do.
    changeView({ status: "", missing: "", extra: "", ...Object.fromEntries(new FormData(controls)) }),
  );
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => {
    event.preventDefault();
    changeView(DEFAULT_VIEW);
  });
  byId("pager").addEventListener("click", ({ target }) => {
    const step = { previous: -1, next: 1 }[target.name];
    if (!step) return;
    changeView({ page: String(currentPage() + step) });
    byId("gallery").scrollIntoView();
  });
};
