/** Loads a model and its networks, and opens the page on them. */

import { find } from "./controls.js";
import { openNetworks, threadsFor } from "./networks.js";
import { Page } from "./page.js";
import { facts, headings } from "./words.js";

/** Says what went wrong where the page said that it loads. */
function fail(error) {
  find("status").hidden = false;
  find("status").textContent = `This page does not run here: ${error?.message ?? error}`;
}

/** Says what the page shows and what runs it. */
function introduce(model) {
  const { title, about } = headings(model);
  document.title = find("title").textContent = title;
  find("about").textContent = about;
  const terms = facts(model).flatMap(([name, text]) => [["dt", name], ["dd", text]]);
  find("facts").replaceChildren(...terms.map(([tag, text]) => {
    const term = document.createElement(tag);
    term.textContent = text;
    return term;
  }));
}

async function start() {
  const answer = await fetch("model.json");
  if (!answer.ok) throw new Error(`model.json: ${answer.status} ${answer.statusText}`);
  const model = await answer.json();
  introduce(model);
  find("status").textContent = "Loading the networks…";
  const ask = await openNetworks(model.graphs, threadsFor(model.student));
  find("status").hidden = true;
  find("page").hidden = false;
  new Page(model, ask);
}

addEventListener("error", ({ error, message }) => fail(error ?? message));
start().catch(fail);
