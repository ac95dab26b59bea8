"use strict";
// The details of hosts, unfolded when they are asked for. Texts are set as texts, never as markup.
(() => {
  const hosts = [...document.querySelectorAll("details.host")];
  const form = document.querySelector(".filter");
  const search = document.getElementById("search");
  const state = document.getElementById("state");
  const shown = document.getElementById("shown");
  let loading = null;
  let words = null;

  const load = () => {
    loading = loading || (async () => {
      const packed = Uint8Array.from(atob(document.getElementById("details").textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      return JSON.parse(await new Response(stream).text());
    })();
    return loading;
  };

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const pairs = (rows, kind) => {
    const list = element("dl", undefined, kind);
    for (const [name, value, note] of rows) {
      const row = element("div");
      const cell = element("dd");
      cell.append(element("bdi", value));
      if (note) cell.append(" ", element("span", note, "note"));
      row.append(element("dt", name), cell);
      list.append(row);
    }
    return list;
  };

  const folded = (title, inside) => {
    const box = element("details");
    box.append(element("summary", title), inside);
    return box;
  };

  const kinds = { pass: "good", fail: "bad", unknown: "doubt", "passed then": "doubt", error: "worst" };

  const unfold = (data, number) => {
    const text = (place) => (place < 0 ? "" : data.texts[place]);
    const evidence = (place) => pairs(data.evidence[place].map((row) => row.map(text)), "evidence");
    const [findings, domains] = data.hosts[number];
    const inside = document.createDocumentFragment();
    inside.append(element("h3", `Findings: ${findings.length}`));
    const list = element("ul");
    for (const [rule, verdict, severity, subject, reason, seen, remedy, waiver, since, title, code] of findings) {
      const item = element("li");
      const name = text(verdict);
      item.append(element("span", name, `chip ${kinds[name] || "calm"}`), " ", element("code", text(rule)), " ", element("bdi", text(subject)), ": ", element("bdi", text(reason)));
      const facts = [["severity", text(severity)], ["since", text(since)], ["remedy", text(remedy)], ["waiver", text(waiver)]].filter(([, value]) => value);
      const box = element("div");
      if (title >= 0) box.append(element("p", text(title)));
      box.append(pairs(facts), evidence(seen));
      if (code >= 0) box.append(element("h4", "Instructions that decide"), pairs(data.code[code].map((row) => row.map(text)), "evidence code"));
      item.append(folded("Evidence", box));
      list.append(item);
    }
    inside.append(list, element("h3", `Domains: ${domains.length}`));
    const guests = element("ul");
    for (const [name, uuid, chain, reason, persistent, live, action, owner, links, seen] of domains) {
      const item = element("li");
      const bold = element("strong");
      bold.append(element("bdi", text(name)));
      item.append(bold, ` ${text(chain)}: `, element("bdi", text(reason)));
      const box = element("div");
      box.append(pairs([["next", text(action)], ["PMU", `${text(persistent)} as defined, ${text(live)} in this run`], ["owner", text(owner)], ["uuid", text(uuid)]]));
      box.append(element("h4", "The chain"), pairs(data.links[links].map(([link, holds, why]) => [text(link), text(holds), text(why)])));
      box.append(element("h4", "Evidence"), evidence(seen));
      item.append(folded("Chain and evidence", box));
      guests.append(item);
    }
    inside.append(guests);
    return inside;
  };

  for (const host of hosts) {
    host.addEventListener("toggle", async () => {
      const place = host.querySelector(".inside");
      if (!host.open || place.hasChildNodes()) return;
      place.append(element("p", "Unpacking ..."));
      try {
        const data = await load();
        place.replaceChildren(unfold(data, Number(host.dataset.number)));
      } catch (error) {
        place.replaceChildren(element("p", `This browser cannot unpack the details (${error.message}); exitguard report --format csv has them.`));
      }
    });
  }

  // What a search looks through: what stands there, the names of domains, and the rules that do not pass.
  const gather = (data) => hosts.map((host) => {
    const [findings, domains] = data.hosts[Number(host.dataset.number)];
    const rules = findings.filter(([, verdict]) => data.texts[verdict] !== "pass").map(([rule]) => data.texts[rule]);
    return [host.querySelector("summary").textContent, ...domains.map(([name]) => data.texts[name]), ...rules].join("\n").toLowerCase();
  });

  const filter = async () => {
    const wanted = search.value.trim().toLowerCase();
    if (wanted && !words) {
      try {
        words = gather(await load());
      } catch {
        words = hosts.map((host) => host.querySelector("summary").textContent.toLowerCase());
      }
    }
    let count = 0;
    hosts.forEach((host, place) => {
      const fits = (!state.value || host.dataset.state === state.value || (state.value === "stale" && host.dataset.stale !== undefined)) && (!wanted || words[place].includes(wanted));
      host.hidden = !fits;
      count += fits;
    });
    shown.textContent = `${count.toLocaleString("en")} of ${hosts.length.toLocaleString("en")} hosts shown`;
  };

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", filter);
  state.addEventListener("change", filter);
  filter();
})();
