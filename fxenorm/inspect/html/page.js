"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { layers, groups, pictures } = data;
  const number = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 1e-9 ? "0" : Number(value.toPrecision(4)).toString());

  // An element with attributes and children; texts are words, never markup.
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  // ------------------------------------------------------------ light and dark

  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.ground ? root.dataset.ground === "dark" : system.matches);

  function remember(ground) {
    try {
      localStorage.setItem("fxenorm-ground", ground);
    } catch {
      // A page that is opened from a file may keep nothing: then the choice holds until it is closed.
    }
  }

  function remembered() {
    try {
      return localStorage.getItem("fxenorm-ground");
    } catch {
      return null;
    }
  }

  function paint() {
    byId("ground").textContent = isDark() ? "Light" : "Dark";
    byId("ground").setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
    paintCharts();
  }

  byId("ground").addEventListener("click", () => {
    root.dataset.ground = isDark() ? "light" : "dark";
    remember(root.dataset.ground);
    paint();
  });
  system.addEventListener("change", paint);
  if (["light", "dark"].includes(remembered())) root.dataset.ground = remembered();

  // ------------------------------------------------------------ charts

  function paintCharts() {
    if (!window.Bokeh) return;
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const plot of window.Bokeh.documents.flatMap((one) => one.roots())) {
      for (const axis of [...plot.below, ...plot.left]) {
        if (!("axis_label" in axis)) continue;
        axis.setv({
          axis_label_text_color: colour("text"), major_label_text_color: colour("muted"), axis_line_color: colour("edge"),
          major_tick_line_color: colour("edge"), minor_tick_line_color: null, axis_label_text_font_style: "normal",
        });
      }
      for (const grid of plot.center) if ("grid_line_color" in grid) grid.setv({ grid_line_color: colour("rule") });
      for (const legend of plot.above) if ("label_text_color" in legend) legend.setv({ label_text_color: colour("text") });
      for (const renderer of plot.renderers) {
        const own = { value: colour(renderer.name.startsWith("before") ? "before" : "after") };
        for (const name of ["fill_color", "line_color", "hatch_color"]) if (name in renderer.glyph) renderer.glyph[name] = own;
      }
    }
  }

  async function showCharts() {
    if (!window.Bokeh) return;
    for (const chart of Object.values(data.charts)) await window.Bokeh.embed.embed_item(chart);
    paintCharts();
    root.dataset.charts = "shown";
  }

  // ------------------------------------------------------------ tables

  for (const table of document.querySelectorAll("main table")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => sort(table, headings, column));
    });
  }

  function sort(table, headings, column) {
    const down = headings[column].getAttribute("aria-sort") === "ascending";
    headings.forEach((heading, k) => heading.setAttribute("aria-sort", k !== column ? "none" : down ? "descending" : "ascending"));
    const key = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.value === undefined) return cell.textContent;
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    const words = new Intl.Collator("en", { numeric: true });
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // unknown numbers last, either way
      const order = typeof a === "number" ? a - b : words.compare(a, b);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const button of document.querySelectorAll("button[data-group]")) {
    button.addEventListener("click", () => {
      chooseGroup(Number(button.dataset.group));
      byId("picture").scrollIntoView();
    });
  }

  // ------------------------------------------------------------ the picture: which one is shown

  const view = byId("view");
  const panel = byId("panel");
  const stage = byId("stage");
  const shown = { picture: 0, x: 0, y: 0, scale: 1, box: -1, line: -1, layer: -1, group: -1 };
  const first = stage.innerHTML === "" ? null : stage.firstElementChild;
  const drawing = () => stage.firstElementChild;
  const boxes = () => [...stage.querySelectorAll(".box")];

  function showPicture(picture) {
    const next = picture === 0 ? first : byId(`picture-${picture}`).content.firstElementChild.cloneNode(true);
    shown.picture = picture;
    shown.box = shown.line = -1;
    stage.replaceChildren(next);
    prepare();
    byId("collapse").hidden = picture === 0;
    const whole = byId("whole");
    if (whole) whole.setAttribute("aria-pressed", String(Number(whole.dataset.picture) === picture));
    search();
    begin();
  }

  // Boxes can be reached by keyboard: one of them by Tab, from there the others by arrows.
  function prepare() {
    for (const element of stage.querySelectorAll(".box, .open")) {
      element.setAttribute("role", "button");
      element.setAttribute("tabindex", element.classList.contains("open") ? "0" : "-1");
    }
    const one = stage.querySelector(".box");
    if (one) one.setAttribute("tabindex", "0");
  }

  function open(picture) {
    if (picture < 0) return;
    const layer = shown.layer;
    showPicture(picture);
    if (layer >= 0) markLayer(layer, true);
    view.scrollIntoView({ block: "nearest" });
  }

  // ------------------------------------------------------------ the picture: pan and zoom

  const least = 0.05;
  const most = 4;

  function place(glide = false) {
    stage.classList.toggle("glide", glide);
    stage.style.transform = `translate(${shown.x}px, ${shown.y}px) scale(${shown.scale})`;
  }

  function size() {
    const box = drawing().viewBox.baseVal;
    return [box.width, box.height];
  }

  function fit(least = 0) {
    if (!drawing()) return;
    const [width, height] = size();
    const [wide, high] = [view.clientWidth, view.clientHeight];
    const whole = Math.min(wide / width, high / height, 1.25);
    shown.scale = Math.max(whole, Math.min(least, Math.max(wide / width, 0.75)));
    shown.x = Math.max((wide - width * shown.scale) / 2, 0);
    shown.y = Math.max((high - height * shown.scale) / 2, 0);
    place();
  }

  // The first look: the whole picture where its words can be read then, else its beginning.
  const begin = () => fit(1);

  function zoom(factor, x = view.clientWidth / 2, y = view.clientHeight / 2, glide = false) {
    const scale = Math.min(most, Math.max(least, shown.scale * factor));
    shown.x = x - ((x - shown.x) * scale) / shown.scale;
    shown.y = y - ((y - shown.y) * scale) / shown.scale;
    shown.scale = scale;
    place(glide);
  }

  function pan(x, y, glide = false) {
    const [width, height] = size().map((one) => one * shown.scale);
    shown.x = Math.min(view.clientWidth - 40, Math.max(40 - width, shown.x + x));
    shown.y = Math.min(view.clientHeight - 40, Math.max(40 - height, shown.y + y));
    place(glide);
  }

  const pointers = new Map();
  let moved = 0;

  view.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    moved = 0;
  });
  view.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (moved > 4 && !view.hasPointerCapture(event.pointerId)) {
      view.setPointerCapture(event.pointerId);
      view.classList.add("drag");
    }
    if (pointers.size === 1) {
      if (moved > 4) pan(now[0] - before[0], now[1] - before[1]);
    } else {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const spread = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
      const frame = view.getBoundingClientRect();
      const middle = [(now[0] + other[0]) / 2 - frame.left, (now[1] + other[1]) / 2 - frame.top];
      pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      zoom(spread(now) / spread(before), ...middle);
    }
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    view.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      view.classList.remove("drag");
    });
  }
  view.addEventListener("click", (event) => {
    if (moved > 4) return; // the end of a drag
    const target = event.target.closest(".open, .box, .line");
    if (!target) return;
    if (target.classList.contains("open")) open(pictures[shown.picture].frames[Number(target.dataset.frame)]);
    else if (target.classList.contains("box")) chooseBox(Number(target.dataset.box));
    else chooseLine(Number(target.dataset.line));
  });
  view.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey && !view.contains(document.activeElement)) return; // the page scrolls
      event.preventDefault();
      const frame = view.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.008 : 0.0016)), event.clientX - frame.left, event.clientY - frame.top);
    },
    { passive: false },
  );
  view.addEventListener("keydown", (event) => {
    const box = event.target.closest(".box");
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (step && box && !event.shiftKey) focusBox(boxes()[boxes().indexOf(box) + step]);
    else if (step) pan(...(event.key.endsWith("Down") || event.key.endsWith("Up") ? [0, -60 * step] : [-60 * step, 0]), true);
    else if (event.key === "Home" && box) focusBox(boxes()[0]);
    else if (event.key === "End" && box) focusBox(boxes().at(-1));
    else if (event.key === "+" || event.key === "=") zoom(1.25, undefined, undefined, true);
    else if (event.key === "-") zoom(0.8, undefined, undefined, true);
    else if (event.key === "0") fit();
    else if (event.key === "Escape") forget();
    else if (event.key === "Enter" || event.key === " ") event.target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    else return;
    event.preventDefault();
  });

  function focusBox(box) {
    if (!box) return;
    for (const one of boxes()) one.setAttribute("tabindex", one === box ? "0" : "-1");
    box.focus({ preventScroll: true });
    show(box);
  }

  // Moves the picture so that a part of it is seen.
  function show(element) {
    const frame = view.getBoundingClientRect();
    const at = element.getBoundingClientRect();
    const edge = 24;
    const over = (low, high, least, most) => (low < least + edge ? least + edge - low : high > most - edge ? most - edge - high : 0);
    const covered = panel.hidden || getComputedStyle(panel).position === "static" ? 0 : panel.offsetWidth + 12;
    const [x, y] = [over(at.left, at.right, frame.left, frame.right - covered), over(at.top, at.bottom, frame.top, frame.bottom)];
    if (x || y) pan(x, y);
  }

  byId("nearer").addEventListener("click", () => zoom(1.25, undefined, undefined, true));
  byId("farther").addEventListener("click", () => zoom(0.8, undefined, undefined, true));
  byId("fit").addEventListener("click", () => fit());
  byId("collapse").addEventListener("click", () => {
    showPicture(0);
    byId("fit").focus();
  });
  byId("whole")?.addEventListener("click", (event) => {
    const picture = Number(event.currentTarget.dataset.picture);
    showPicture(shown.picture === picture ? 0 : picture);
  });

  // ------------------------------------------------------------ what is chosen

  const parts = () => pictures[shown.picture];

  function mark(kind, numbers) {
    for (const element of stage.querySelectorAll(`.${kind}`)) {
      const on = numbers.includes(Number(element.dataset[kind]));
      element.classList.toggle("chosen", on);
      if (kind === "box") element.setAttribute("aria-pressed", String(on));
    }
    drawing().classList.toggle("chosen-line", kind === "line" && numbers.length > 0);
  }

  function chooseBox(box) {
    const own = parts().boxes[box];
    if (own.length) chooseLayer(own.includes(shown.layer) ? shown.layer : own[0], box);
  }

  function chooseLayer(layer, box = parts().boxes.findIndex((own) => own.includes(layer))) {
    shown.layer = layer;
    shown.box = box;
    mark("line", []);
    mark("box", [box]);
    tellLayer(layer, box);
  }

  function markLayer(layer, see) {
    const box = parts().boxes.findIndex((own) => own.includes(layer));
    chooseLayer(layer, box);
    const element = stage.querySelector(`.box[data-box="${box}"]`);
    if (see && element) show(element);
    return element;
  }

  function chooseLine(line) {
    const own = parts().lines[line];
    shown.line = line;
    mark("box", []);
    mark("line", [line]);
    tellGroup(own.includes(shown.group) ? shown.group : own[0], own);
  }

  function chooseGroup(group) {
    shown.group = group;
    chooseLine(parts().lines.findIndex((own) => own.includes(group)));
  }

  const list = (title, items) => (items.length ? [make("h4", {}, title), make("ul", {}, ...items.map((item) => make("li", {}, item)))] : []);
  const groupButton = (group) => make("button", { type: "button", class: "link", onclick: () => chooseGroup(group) }, groups[group].name);
  const layerButton = (name) => {
    const layer = layers.findIndex((one) => one.name === name);
    if (layer < 0) return name;
    return make("button", { type: "button", class: "link", onclick: () => markLayer(layer, true) }, name);
  };

  function chooser(label, own, current, name, choose) {
    if (own.length < 2) return [];
    const select = make("select", { "aria-label": label, onchange: () => choose(Number(select.value)) });
    for (const one of own) select.append(make("option", { value: one, selected: one === current }, name(one)));
    return [make("p", { class: "muted" }, `one of ${own.length}, drawn as one`), select];
  }

  function tell(...parts) {
    const close = make("button", { type: "button", class: "close", "aria-label": "Close", onclick: forget }, "×");
    panel.replaceChildren(close, ...parts);
    panel.hidden = false;
    if (getComputedStyle(panel).position === "static") panel.scrollIntoView({ block: "nearest" }); // on a phone it lies below
  }

  function forget() {
    panel.hidden = true;
    mark("box", []);
    mark("line", []);
    shown.box = shown.line = shown.layer = shown.group = -1;
    stage.querySelector(".box[tabindex='0']")?.focus({ preventScroll: true });
  }

  function tellLayer(layer, box) {
    const told = layers[layer];
    const own = parts().boxes[box];
    const picture = parts().opens[box];
    const sentences = told.sentences.map((sentence) => sentence.trim());
    const touching = groups.flatMap((group, k) => (group.producers.includes(told.name) || group.consumers.includes(told.name) ? [k] : []));
    tell(
      make("h3", {}, told.name),
      ...(told.kind ? [make("p", { class: "muted" }, told.kind)] : []),
      ...chooser("Layer", own, layer, (one) => layers[one].name, (one) => chooseLayer(one, box)),
      ...list("Why", sentences.map((sentence, k) => (k ? sentence : sentence.replace(`${told.name}: `, "")))),
      ...(told.before === null ? [] : list("Norm", [`${number(told.before)} → ${number(told.after)} when balanced`])),
      ...list("Groups", touching.map(groupButton)),
      ...(picture >= 0 ? [make("div", { class: "row" }, make("button", { type: "button", onclick: () => open(picture) }, `Open all ${own.length}`))] : []),
    );
  }

  function tellGroup(group, own) {
    shown.group = group;
    const told = groups[group];
    const ends = (names) => [...names.slice(0, 40).map(layerButton), ...(names.length > 40 ? [`and ${names.length - 40} more`] : [])];
    const held = told.held ? [`${told.held.toLocaleString("en")} of ${told.channels.toLocaleString("en")} scales are held`] : [];
    tell(
      make("h3", {}, `${told.name}: ${told.kind}`),
      make("p", {}, `${told.channels.toLocaleString("en")} channel${told.channels === 1 ? "" : "s"}`),
      ...chooser("Group", own, group, (one) => groups[one].name, (one) => tellGroup(one, own)),
      ...list("Producers write it", ends(told.producers)),
      ...list("Consumers read it", ends(told.consumers)),
      ...list("Operators between", told.between.length ? [told.between.join(", ")] : []),
      ...list("Imbalance", told.before === null ? [] : [`${number(told.before)} → ${number(told.after)} when balanced`]),
      ...list("Held", held),
    );
  }

  // ------------------------------------------------------------ search

  const field = byId("search");
  const found = byId("found");

  function search() {
    const words = field.value.trim().toLowerCase();
    const hits = words ? layers.flatMap((layer, k) => (layer.name.toLowerCase().includes(words) ? [k] : [])) : [];
    const hit = new Set(hits);
    for (const box of boxes()) box.classList.toggle("found", parts().boxes[Number(box.dataset.box)].some((layer) => hit.has(layer)));
    byId("matches").textContent = words ? `${hits.length} layer${hits.length === 1 ? "" : "s"}` : "";
    return hits;
  }

  function offer() {
    const hits = search();
    found.replaceChildren(...hits.slice(0, 12).map((layer) => make("li", {}, make("button", { type: "button", onclick: () => take(layer) }, layers[layer].name))));
    found.hidden = hits.length === 0;
  }

  function take(layer) {
    found.hidden = true;
    const element = markLayer(layer, true);
    if (element) focusBox(element);
  }

  field.addEventListener("input", offer);
  field.addEventListener("focus", () => field.value && offer());
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      const hits = search();
      if (hits.length) take(hits[0]);
    } else if (event.key === "ArrowDown" && !found.hidden) found.querySelector("button").focus();
    else if (event.key === "Escape") found.hidden = true;
    else return;
    event.preventDefault();
  });
  found.addEventListener("keydown", (event) => {
    const buttons = [...found.querySelectorAll("button")];
    const next = buttons.indexOf(document.activeElement) + { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      found.hidden = true;
      field.focus();
    } else if (!Number.isNaN(next)) (buttons[next] ?? field).focus();
    else return;
    event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".search")) found.hidden = true;
  });

  // ------------------------------------------------------------ begin

  prepare();
  begin();
  new ResizeObserver(() => pan(0, 0)).observe(view);
  paint();
  showCharts();
})();
