// A photo goes to /predict as it is; its row comes back.

{
  const answers = byId("answers");
  const drop = byId("drop");
  const files = byId("files");

  const showRow = (place, row) => {
    if (row.status !== "ok") {
      place.append(make("p", { className: "bad" }, `${row.status}: `, stranger(row.reason)));
      return;
    }
    const decided = row.labels === undefined ? [row.label] : row.labels;
    place.append(make("h3", {}, visible(decided.join(", ") || "no class")));
    const ranking = make("ol");
    for (const { label, probability } of row.top) {
      ranking.append(
        make("li", {}, stranger(label), makeBar(probability), formatPercent(probability)),
      );
    }
    place.append(ranking);
  };

  const ask = async (file) => {
    const picture = make("img", { alt: "", src: URL.createObjectURL(file) });
    picture.addEventListener("error", () => picture.remove());
    const place = make("div", {}, make("p", { className: "quiet" }, stranger(file.name)));
    answers.prepend(make("article", { className: "panel answer" }, picture, place));
    const key = byId("key");
    const headers = { "Content-Type": "application/octet-stream" };
    if (key !== null) {
      headers.Authorization = `Bearer ${key.value}`;
    }
    try {
      const answer = await fetch("predict", { method: "POST", headers, body: file });
      const value = await answer.json();
      if (value.error !== undefined) {
        throw new Error(value.error);
      }
      showRow(place, value);
    } catch (error) {
      place.append(make("p", { className: "bad" }, visible(error.message)));
    }
  };

  // One after the other: many photos are no reason to refuse other people's.
  let asked = Promise.resolve();
  const askAll = (list) => {
    for (const file of list) {
      asked = asked.then(() => ask(file));
    }
  };

  files.addEventListener("change", () => askAll([...files.files]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => askAll([...event.dataTransfer.files]));
}
