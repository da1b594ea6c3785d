"use strict";

// What a listener hears and in which order comes from the page's data; answers leave it as a
// file that the listener sends on. Nothing here knows which system made a recording.

/** The order of a listener: FNV-1a of the id's UTF-8, 32 bits, as order_of in making.py. */
function orderOf(listener, count) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(listener)) {
    value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  }
  return value % count;
}

/** The trials of a listener as they are heard: id, names of the sounds, the reference's name. */
function planOf(test, listener) {
  return test.orders[orderOf(listener, test.orders.length)].map(([index, ...places]) => {
    const { id, clips, reference } = test.trials[index];
    return { trial: id, clips: places.map((place) => clips[place]), reference };
  });
}

/** The file of answers, complete or not. */
function answersOf(test, state) {
  return {
    format: test.format,
    test: test.test,
    kind: test.kind,
    listener: state.listener,
    order: orderOf(state.listener, test.orders.length),
    begun: state.begun,
    saved: new Date().toISOString(),
    answers: state.answers,
  };
}

function start() {
  const test = JSON.parse(document.getElementById("test").textContent);
  const stage = document.getElementById("stage");
  const store = `${test.format} ${test.test}`;
  const sliders = test.kind === "mushra";
  let state = null;
  let trial = null; // what is on the screen: players, keys

  /** An element with attributes (a function listens) and children (a string is text). */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function show(...children) {
    for (const player of trial?.players ?? []) player.audio.pause();
    trial = null;
    stage.replaceChildren(...children.filter(Boolean));
    scrollTo(0, 0);
    // Readers of screens begin here, and Tab leads on from here.
    stage.querySelector("h2").focus();
  }

  // A browser may forbid storage to a page from a file: the test still works, without a memory.
  function remember(key, value) {
    try { localStorage.setItem(`${store} ${key}`, JSON.stringify(value)); } catch { /* see above */ }
  }
  function recall(key) {
    try { return JSON.parse(localStorage.getItem(`${store} ${key}`)); } catch { return null; }
  }

  const keyed = (key, ...rest) => [make("kbd", {}, key), ...rest];
  const heading = (text) => make("h2", { tabindex: "-1" }, text);

  function intro() {
    const given = new URLSearchParams(location.search).get("listener");
    const name = make("input", {
      type: "text", id: "listener", required: true, autocomplete: "off", maxlength: "80",
      value: given ?? recall("last") ?? "",
    });
    const keys = [
      keyed("Tab", " goes from control to control, ", make("kbd", {}, "Enter"), " presses a button"),
      sliders
        ? keyed("R", " plays the reference; ", make("kbd", {}, "A"), ", ", make("kbd", {}, "B"),
            ", … play a recording and go to its slider, which the arrow keys move")
        : keyed("A", test.trials[0].clips.length > 1
          ? " plays the first recording, " : " plays the recording",
          ...(test.trials[0].clips.length > 1 ? [make("kbd", {}, "B"), " the second"] : [])),
      !sliders && keyed("1", " to ", make("kbd", {}, String(test.scale.length)), " choose an answer"),
      keyed("N", " goes on once all is heard and answered"),
    ].filter(Boolean);
    show(
      heading("Before you begin"),
      make("p", {}, `You will hear ${test.trials.length} trials, and answer one question each time: `,
        make("strong", {}, test.question)),
      sliders && make("p", {}, "Each time you hear a reference and several recordings. One of them is the "
        + "reference again, hidden: it belongs at 100. Set the others by how close they come to it."),
      make("p", {}, "Use headphones in a quiet room, and do not change the volume after the first trial. "
        + "Hear every recording to its end, as often as you like. There is no way back to an earlier trial."),
      make("p", {}, "Some recordings say which answer to choose: do what they say. They show that "
        + "answers are given by ear."),
      make("p", {}, "Your answers stay in this browser until you hand them over at the end. You may "
        + "stop, close the page and go on later in the same browser."),
      make("details", {}, make("summary", {}, "Keys"),
        make("ul", {}, ...keys.map((line) => make("li", {}, ...line)))),
      make("form", { submit: (event) => { event.preventDefault(); begin(name.value.trim()); } },
        make("label", { for: "listener" }, "Your name or number, as you were told"), name,
        make("button", { class: "main" }, "Begin")),
    );
  }

  function begin(listener) {
    if (!listener) return;
    remember("last", listener);
    state = recall(`answers ${listener}`)
      ?? { listener, begun: new Date().toISOString(), answers: [] };
    next();
  }

  function next() {
    const plan = planOf(test, state.listener);
    if (state.answers.length < plan.length) ask(plan, state.answers.length);
    else finish();
  }

  /** A button that plays a sound, and whether it was heard to its end. */
  function playerOf(name, title, key, changed) {
    const audio = new Audio(`sounds/${name}.wav`);
    audio.preload = "auto";
    const bar = make("i");
    const said = make("span", { class: "note" }, "not heard yet");
    const button = make("button", { type: "button", "aria-keyshortcuts": key }, "▶ ", title, " ",
      make("kbd", {}, key.toUpperCase()));
    const player = { audio, button, heard: false, key };
    player.box = make("div", { class: "clip" }, button, said, make("div", { class: "run" }, bar));
    player.play = () => {
      for (const other of trial.players) if (other !== player) other.audio.pause();
      audio.currentTime = 0;
      audio.play().catch(() => { /* "error" below tells */ });
    };
    button.addEventListener("click", player.play);
    audio.addEventListener("timeupdate", () => {
      bar.style.width = `${100 * audio.currentTime / (audio.duration || 1)}%`;
    });
    audio.addEventListener("ended", () => {
      player.heard = true;
      bar.style.width = "100%";
      said.textContent = "heard ✓";
      changed();
    });
    audio.addEventListener("error", () => {
      said.textContent = "cannot be played: check the connection and reload this page";
      said.setAttribute("role", "alert");
    });
    return player;
  }

  function ask(plan, number) {
    const { trial: id, clips, reference } = plan[number];
    const begun = performance.now();
    const scores = clips.map(() => null);
    const submit = make("button", { class: "main", disabled: true, "aria-keyshortcuts": "n" },
      "Next ", make("kbd", {}, "N"));
    const status = make("p", { class: "note", role: "status" });
    const answered = () => (sliders ? scores : scores.slice(0, 1)).every((score) => score !== null);
    const changed = () => {
      const unheard = players.filter((player) => !player.heard).length;
      submit.disabled = unheard > 0 || !answered();
      status.textContent = unheard
        ? `${unheard} of ${players.length} still to be heard to the end`
        : answered() ? "" : sliders ? "Move every slider" : "Choose an answer";
    };
    const titles = clips.length === 1 ? ["Recording"] : clips.length === 2 && !sliders
      ? ["First", "Second"] : clips.map((_, index) => `Recording ${index + 1}`);
    const players = clips.map((name, index) =>
      playerOf(name, titles[index], String.fromCharCode(97 + index), changed));
    const inputs = sliders ? players.map((player, index) => addSlider(player, index)) : [];
    if (reference) players.unshift(playerOf(reference, "Reference", "r", changed));

    function addSlider(player, index) {
      const output = make("output", {}, "–");
      const slider = make("input", {
        type: "range", min: "0", max: "100", value: "50", "aria-label": `${titles[index]}, 0 to 100`,
      });
      const set = () => {
        scores[index] = Number(slider.value);
        output.textContent = slider.value;
        changed();
      };
      slider.addEventListener("input", set);
      slider.addEventListener("click", set); // whoever means the middle presses it
      player.box.append(make("div", { class: "slider" }, slider, output,
        make("div", { class: "labels" }, ...test.scale.map(([, label]) => make("span", {}, label)))));
      return slider;
    }

    const radios = sliders ? [] : test.scale.map(([value], index) => make("input", {
      type: "radio", name: "answer", value, "aria-keyshortcuts": String(index + 1),
      change: () => { scores[0] = value; changed(); },
    }));
    const choices = radios.map((radio, index) => make("label", { class: "choice" }, radio,
      make("span", {}, make("kbd", {}, String(index + 1)), labelOf(...test.scale[index]))));
    const form = make("form", { submit: (event) => { event.preventDefault(); save(); } },
      ...players.map((player) => player.box),
      !sliders && make("fieldset", {}, make("legend", {}, test.question),
        make("div", { class: "choices" }, ...choices)) || "",
      make("div", { class: "row" }, submit,
        make("button", { type: "button", click: finish }, "Stop here"), status));

    function save() {
      if (submit.disabled) return;
      state.answers.push({
        trial: id, clips, scores: sliders ? scores : scores.slice(0, 1),
        seconds: Math.round((performance.now() - begun) / 100) / 10,
      });
      remember(`answers ${state.listener}`, state);
      next();
    }

    show(
      make("progress", { max: plan.length, value: number, "aria-label": "trials answered" }),
      heading(`Trial ${number + 1} of ${plan.length}`),
      sliders && make("p", {}, test.question),
      form,
    );
    trial = { players, submit, inputs, radios, first: reference ? 1 : 0 };
    changed();
    const following = plan[number + 1];
    for (const name of following ? [...following.clips, following.reference] : []) {
      if (name) new Audio(`sounds/${name}.wav`).preload = "auto";
    }
  }

  function labelOf(value, label) {
    return test.kind === "mos" ? `${value} ${label}` : label;
  }

  document.addEventListener("keydown", (event) => {
    if (!trial || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    const index = trial.players.findIndex((player) => player.key === key);
    if (index >= 0) {
      trial.players[index].play();
      trial.inputs[index - trial.first]?.focus();
    } else if (key === "n") {
      trial.submit.click();
    } else if (trial.radios[Number(key) - 1]) {
      const radio = trial.radios[Number(key) - 1];
      radio.focus();
      radio.click();
    } else return;
    event.preventDefault();
  });

  function finish() {
    const total = planOf(test, state.listener).length;
    const done = state.answers.length;
    const text = JSON.stringify(answersOf(test, state), null, 1);
    const file = `answers-${test.test}-${state.listener.replace(/[^A-Za-z0-9_-]+/g, "_")}.json`;
    const box = make("textarea", { readonly: true, "aria-label": "your answers" });
    box.value = text;
    const said = make("p", { class: "note", role: "status" });
    show(
      make("progress", { max: total, value: done, "aria-label": "trials answered" }),
      heading(done < total ? `Stopped after ${done} of ${total}` : "Thank you, that was all"),
      make("p", {}, "Save your answers and send the file to whoever asked you; or copy the text."),
      make("div", { class: "row" },
        make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })),
          download: file, id: "download" }, make("button", { type: "button", class: "main", tabindex: "-1" },
          "Save the answers")),
        make("button", { type: "button", click: async () => {
          box.select();
          try { await navigator.clipboard.writeText(text); } catch { document.execCommand("copy"); }
          said.textContent = "copied";
        } }, "Copy"),
        done < total && make("button", { type: "button", click: next }, "Go on listening") || ""),
      said,
      box,
    );
  }

  intro();
}

if (typeof document === "undefined") module.exports = { orderOf, planOf, answersOf };
else start();
