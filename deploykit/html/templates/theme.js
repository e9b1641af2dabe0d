// Light and dark: as the system has it, until the reader chooses.

{
  const button = byId("theme");
  const themes = { "": "Auto", light: "Light", dark: "Dark" };
  const order = Object.keys(themes);
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${themes[theme]}`;
  };
  button.addEventListener("click", () => {
    const now = order.indexOf(document.documentElement.dataset.theme);
    show(order[(now + 1) % order.length]);
  });
  show("");
  button.hidden = false;
}
