"use strict";
// The page is whole without this. It adds sorting, filtering, and details that open for print.
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);

  // All samples, by column: numbers as the bytes of float64, little-endian as in every browser.
  const block = read("all-samples");
  const shown = block.shown;
  const pictured = new Set(read("audit").pictures.shown.map(({ index }) => index));
  const floats = (text) => new Float64Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const [margin, radius, recorded] = [block.margin, block.radius, block.distance].map(floats);
  const unchanged = new Set(block.unchanged);
  const distance = recorded.map((value, at) => (unchanged.has(at) ? 0 : value));
  const attack = (at) => {
    if (unchanged.has(at)) return "clean";
    return block.attack[at] < 0 ? "–" : shown.attacks[block.attack[at]];
  };
  const standingOf = (at) => shown.standings[shown.standing[at]];
  const columns = [
    { key: (at) => block.index[at], text: (at) => String(block.index[at]) },
    { text: (at) => shown.classes[block.label[at]] },
    { text: (at) => shown.classes[block.predicted[at]] },
    { key: (at) => margin[at], text: (at) => shown.margin[at] },
    { key: (at) => radius[at], text: (at) => shown.radius[at] },
    { key: (at) => distance[at], text: (at) => shown.distance[at] },
    { key: (at) => distance[at] - radius[at], text: (at) => shown.gap[at] },
    { text: attack },
    { text: standingOf },
  ];
  const table = byId("sample-table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const step = Math.max(body.rows.length, 200);
  const count = block.index.length;

  // A row as the template writes it. Texts go in as text, whatever they hold.
  const glyph = (name) => {
    const svg = document.querySelector("h1 svg").cloneNode(true);
    svg.firstElementChild.setAttribute("href", `#g-${name}`);
    return svg;
  };
  const draw = (at) => {
    const row = document.createElement("tr");
    row.id = `s${block.index[at]}`;
    columns.forEach(({ key, text }, column) => {
      const cell = document.createElement(column ? "td" : "th");
      const value = key && key(at);
      let inside = text(at);
      if (key && column) cell.className = "n";
      if (key && Number.isNaN(value)) cell.className = "n no";
      else if (key) {
        const data = document.createElement("data");
        data.value = value;
        data.textContent = inside;
        inside = data;
      }
      if (!column) {
        cell.scope = "row";
        const link = document.createElement("a");
        link.href = `#${row.id}`;
        link.append(inside);
        inside = link;
        if (pictured.has(block.index[at])) {
          const see = document.createElement("a");
          see.className = "see";
          see.href = `#p${block.index[at]}`;
          see.setAttribute("aria-label", `Pictures of sample ${block.index[at]}`);
          see.append(glyph("picture"));
          inside = document.createDocumentFragment();
          inside.append(link, see);
        }
      }
      if (column === columns.length - 1) {
        cell.className = inside;
        cell.append(glyph(inside));
      }
      cell.append(inside);
      row.append(cell);
    });
    return row;
  };

  // What is shown: the places of the rows that were kept, sorted, the first so many of them; one that a link names first.
  const every = [...block.index.keys()];
  let sorting = null;
  let limit = step;
  let kept = every;
  const show = () => {
    body.replaceChildren(...kept.slice(0, limit).map(draw));
    tell();
  };
  const tell = () => {
    byId("shown").textContent = `${kept.length} of ${count} found${kept.length > body.rows.length ? `, ${body.rows.length} shown` : ""}`;
    byId("more").hidden = kept.length <= body.rows.length;
  };
  const words = (at) => columns.map(({ text }) => text(at)).join(" ").toLowerCase();
  const order = (a, b) => {
    const { key, text } = columns[sorting.column];
    if (!key) {
      const [x, y] = [text(a), text(b)];
      if (x === "–" || y === "–") return (x === "–") - (y === "–");
      return sorting.sign * x.localeCompare(y, "en", { numeric: true });
    }
    const [x, y] = [key(a), key(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // nothing found sorts last
    return sorting.sign * (x - y);
  };
  const find = byId("find");
  const standing = byId("standing");
  const choose = (first) => {
    const asked = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    kept = every.filter((at) => {
      if (standing.value && standingOf(at) !== standing.value) return false;
      if (!asked.length) return true;
      const held = words(at);
      return asked.every((word) => held.includes(word));
    });
    if (sorting) kept.sort(order);
    if (first !== undefined) kept = [first, ...kept.filter((at) => at !== first)];
    limit = step;
    show();
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sorting = { column, sign: down ? -1 : 1 };
      choose();
    });
    head.replaceChildren(button);
  });
  find.addEventListener("input", () => choose());
  standing.addEventListener("input", () => choose());
  byId("more").firstElementChild.addEventListener("click", () => {
    limit += step;
    show();
  });
  const form = find.closest("form");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  tell();

  // A link to a sample that is not shown, or to a part that is folded, brings it forth.
  const reveal = () => {
    const id = location.hash.slice(1);
    if (/^s\d+$/.test(id) && !byId(id)) {
      const at = block.index.indexOf(Number(id.slice(1)));
      if (at < 0) return;
      find.value = standing.value = "";
      choose(at);
    }
    const target = id && byId(id);
    if (!target) return;
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    target.scrollIntoView({ block: "nearest" });
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  // The audit as JSON, with the values of audit.json; where the clipboard is closed to the page, to copy by hand.
  const whole = () => {
    const samples = every.map((at) => ({
      attack: block.attack[at] < 0 ? null : block.attacks[block.attack[at]],
      distance: Number.isNaN(recorded[at]) ? null : recorded[at],
      index: block.index[at], label: block.label[at], margin: margin[at], predicted: block.predicted[at], radius: radius[at],
    }));
    const record = read("audit");
    const pictures = record.pictures.shown.map((one) => {
      const [input, adversarial, difference] = [...byId(`p${one.index}`).querySelectorAll("img")].map((image) => image.src.split(",")[1]);
      return { ...one, input, adversarial, difference };
    });
    return JSON.stringify({ ...record, pictures: { ...record.pictures, shown: pictures }, samples }, null, 1);
  };
  const copy = byId("copy");
  copy.hidden = false;
  copy.firstElementChild.addEventListener("click", async () => {
    const text = whole();
    try {
      await navigator.clipboard.writeText(text);
      copy.lastElementChild.textContent = "copied";
    } catch {
      const area = document.createElement("textarea");
      area.readOnly = true;
      area.rows = 6;
      area.value = text;
      area.setAttribute("aria-label", "The audit as JSON");
      copy.lastElementChild.replaceChildren(area);
      area.select();
    }
  });

  const unfold = byId("unfold");
  if (unfold) {
    unfold.hidden = false;
    const parts = [...document.querySelectorAll(".tree details")];
    const button = unfold.firstElementChild;
    button.addEventListener("click", () => {
      const open = parts.some((part) => !part.open);
      parts.forEach((part) => { part.open = open; });
      button.textContent = open ? "Close all modules" : "Open all modules";
    });
    unfold.hidden = !parts.length;
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));

  // The section being read is marked in the navigation.
  const nav = document.querySelector("nav");
  const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) seen.add(entry.target.id);
      else seen.delete(entry.target.id);
    }
    const first = [...links.keys()].find((id) => seen.has(id));
    for (const [id, link] of links) {
      if (id === first) {
        link.setAttribute("aria-current", "true");
        nav.scrollLeft = link.offsetLeft - 16;  // on a narrow screen the navigation is a strip that scrolls
      } else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-12% 0px -60% 0px" });
  links.forEach((_, id) => watch.observe(byId(id)));
})();
