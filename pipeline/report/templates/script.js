(() => {
  "use strict";
  const grids = JSON.parse(document.getElementById("grids").textContent);
  const panels = [...document.querySelectorAll(".panel")];

  const element = (tag, text, title) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (title) made.title = title;
    return made;
  };

  // Shows the grid of a panel's flow, at its number of evaluations if that was drawn.
  const show = (panel) => {
    const own = grids[panel.querySelector("select").selectedIndex];
    const grid = own.grids.find((g) => g.label === panel.dataset.label) || own.grids[0];
    const image = panel.querySelector("img");
    image.src = grid.file;
    image.width = grid.width;
    image.height = grid.height;
    image.alt = grid.caption;
    panel.querySelector("figcaption").textContent = grid.caption;
    panel.querySelector(".pick").className = "pick " + own.look;
    const rows = panel.querySelector(".rows");
    rows.replaceChildren(...grid.rows.map((name) => element("span", name, name)));
    rows.hidden = grid.rows.length === 0;
    const buttons = own.grids.filter((g) => g.label).map((g) => {
      const button = element("button", g.label, g.caption);
      button.type = "button";
      button.setAttribute("aria-pressed", String(g === grid));
      button.addEventListener("click", () => {
        panel.dataset.label = g.label;
        show(panel);
        panel.querySelector("button[aria-pressed=true]").focus();
      });
      return button;
    });
    panel.querySelector(".buttons").replaceChildren(...buttons);
  };

  for (const panel of panels) {
    panel.querySelector("select").addEventListener("change", () => show(panel));
    show(panel);
  }

  // Two grids wider than their panels scroll together.
  const boxes = panels.map((panel) => panel.querySelector(".scroll"));
  for (const box of boxes) {
    box.addEventListener("scroll", () => {
      for (const other of boxes) if (other !== box) other.scrollLeft = box.scrollLeft;
    });
  }

  const fit = document.getElementById("fit");
  if (fit) fit.addEventListener("change", () => {
    document.querySelector(".panels").classList.toggle("fit", fit.checked);
  });
})();
