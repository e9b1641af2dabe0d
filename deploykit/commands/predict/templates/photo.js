// One photo, large, with its ranking: opened from a card, and leafed through with the arrow keys.

const photo = byId("photo");
let openPlace = 0;

/** A bar with a mark where the class's threshold is, if it has one. */
const barOf = (label, probability) => {
  const bar = makeBar(probability);
  const threshold = head.thresholds[labels.indexOf(label)];
  if (threshold === null) return bar;
  const mark = make("span", { className: "threshold", title: `threshold ${threshold}` });
  mark.style.left = `${100 * threshold}%`;
  return make("span", { className: "limited" }, bar, mark);
};

const rankItem = ({ label, probability }, row) => {
  const value = make("span", { className: "probability" });
  value.textContent = probability === null ? "not ranked" : formatPercent(probability);
  const name = make("span", {}, stranger(label));
  const item = make("li", {}, name, value, barOf(label, probability ?? 0));
  item.classList.toggle("expected", (row.truth ?? []).includes(label));
  if (head.several) {
    item.classList.toggle("given", row.given.includes(label));
    const kind = ["missing", "extra"].find((each) => row[each].includes(label));
    if (kind) name.append(" ", make("span", { className: `chip ${kind}` }, kind));
  }
  return item;
};

/** What a row ranks, and behind it what else it was given or should have been. */
const answersOf = (row) => {
  const ranked = rankingOf(row);
  const named = ranked.map(({ label }) => label);
  const others = without([...row.given, ...row.missing], named);
  // A single answer is always ranked, and what is missing instead is told in the verdict.
  return head.several
    ? [...ranked, ...others.map((label) => ({ label, probability: null }))]
    : ranked;
};

const showVerdict = (row, verdict) => {
  verdict.className = "verdict";
  verdict.hidden = !(row.failed || row.wrong || row.right);
  verdict.classList.toggle("bad", row.failed || row.wrong);
  verdict.classList.toggle("good", row.right);
  if (row.failed) verdict.replaceChildren(row.status);
  else if (row.right) verdict.replaceChildren("right");
  else if (row.wrong) verdict.replaceChildren("wrong: expected ", ...titleOf(row.truth));
};

const showPhoto = () => {
  const row = gallery.shown[openPlace];
  const find = (selector) => photo.querySelector(selector);
  showPicture(row, find("img"), find(".no-picture"));
  find("#photo-name bdi").textContent = visible(row.name);
  showVerdict(row, find(".verdict"));
  find(".reason").textContent = row.failed ? visible(row.reason) : "";
  find(".ranking").replaceChildren(
    ...(row.failed ? [] : answersOf(row).map((answer) => rankItem(answer, row))),
  );
  find(".margin").textContent = row.failed ? "" : `margin ${row.margin}: ${head.margin}`;
  const url = urlOf(row);
  find(".original").hidden = url === null;
  if (url !== null) find(".original a").href = url;
  find("[name=previous]").disabled = openPlace === 0;
  find("[name=next]").disabled = openPlace === gallery.shown.length - 1;
};

const leafTo = (place) => {
  if (place < 0 || place >= gallery.shown.length) return;
  openPlace = place;
  showPhoto();
};

/** Open the photo at a place of the gallery's rows. */
const openPhoto = (place) => {
  leafTo(place);
  photo.showModal();
};

photo.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") leafTo(openPlace - 1);
  if (event.key === "ArrowRight") leafTo(openPlace + 1);
});
photo.addEventListener("click", ({ target }) => {
  if (target.name === "previous") leafTo(openPlace - 1);
  if (target.name === "next") leafTo(openPlace + 1);
  if (target.name === "close" || target === photo) photo.close();
});
