// One photo, large, with its ranking: opened from a card, and leafed through with the arrow keys.

const photo = byId("photo");
let openPlace = 0;

const rankItem = ({ label, probability }, row) => {
  const value = make("span", { className: "probability" }, formatPercent(probability));
  const item = make("li", {}, stranger(label), value, makeBar(probability));
  item.classList.toggle("expected", label === row.expected);
  return item;
};

const showVerdict = (row, verdict) => {
  verdict.className = "verdict";
  verdict.hidden = !(row.failed || row.wrong || row.right);
  verdict.classList.toggle("bad", row.failed || row.wrong);
  verdict.classList.toggle("good", row.right);
  if (row.failed) verdict.replaceChildren(row.status);
  else if (row.right) verdict.replaceChildren("right");
  else if (row.wrong) verdict.replaceChildren("wrong: expected ", stranger(row.expected));
};

const showPhoto = () => {
  const row = gallery.shown[openPlace];
  const find = (selector) => photo.querySelector(selector);
  showPicture(row, find("img"), find(".no-picture"));
  find("#photo-name bdi").textContent = visible(row.name);
  showVerdict(row, find(".verdict"));
  find(".reason").textContent = row.failed ? visible(row.reason) : "";
  find(".ranking").replaceChildren(
    ...(row.failed ? [] : rankingOf(row).map((answer) => rankItem(answer, row))),
  );
  find(".margin").textContent = row.failed ? "" : `margin ${row.margin}: logit 1 minus logit 2`;
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
