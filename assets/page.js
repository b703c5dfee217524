() => {
  // Ties the problems the server told to their inputs, for screen readers and keyboards.
  const inputsOf = (field) =>
    field.querySelectorAll("textarea, input:not([type=file]), button[aria-label*='upload' i]");

  const mark = () => {
    for (const field of document.querySelectorAll(".field")) {
      const problem = field.querySelector(".problem");
      for (const input of inputsOf(field)) {
        if (problem) {
          input.setAttribute("aria-invalid", "true");
          input.setAttribute("aria-describedby", problem.id);
        } else if (input.hasAttribute("aria-invalid")) {
          input.removeAttribute("aria-invalid");
          input.removeAttribute("aria-describedby");
        }
      }
    }
  };

  const addressOf = (job) => {
    const address = new URL(location.href);
    address.searchParams.set("job", job);
    return address;
  };

  // The address names the job on show: a reload, a bookmark and a copied address lead back to it.
  const nameJob = (job) => {
    if (job) history.replaceState(history.state, "", addressOf(job));
  };

  // Whether to look again: unless what has settled is the job on show by now, whatever answer came last.
  const goOn = (job, settled) => ({ __type__: "update", active: settled !== (job || "none") });

  // The form is kept for this tab, and for all tabs of this browser by Gradio. Until it is back nothing is kept: fields
  // that come to be, empty, would wipe it out.
  const TAB_KEY = "video-as-prompt-tab";
  let isFormBack = false;
  const recallForm = (...kept) => JSON.parse(sessionStorage.getItem(TAB_KEY)) ?? kept;
  const keepValues = (kept, values) => [isFormBack ? values : kept];
  const keepInTab = (form) => {
    if (isFormBack) sessionStorage.setItem(TAB_KEY, JSON.stringify(form));
  };
  const formIsBack = (form) => {
    isFormBack = true;
    keepInTab(form);
    document.documentElement.dataset.form = "back";
  };

  const say = (button, text) => {
    const before = button.textContent;
    if (before === text) return;
    button.textContent = text;
    setTimeout(() => (button.textContent = before), 2000);
  };

  const copy = (text, button) => {
    const done = () => say(button, "Copied");
    if (navigator.clipboard) return navigator.clipboard.writeText(text).then(done);
    // Over plain http browsers have no clipboard: the old way.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    done();
  };

  const copyLink = (job) => {
    const address = new URL(location.pathname, location.origin);
    address.searchParams.set("job", job);
    copy(address.href, document.querySelector("#copy-link"));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (button) copy(button.parentElement.querySelector("code").textContent, button);
  });

  // The list of jobs is drawn anew when it changes: what had the focus, and what was open, stays so.
  let pressed = null;
  const opened = new Set();
  const idOf = (element) => element.closest(".job")?.dataset.id;
  // After a button of the list: whoever asked to see a job is brought to it, which on a phone is far below.
  let lastAction = null;
  document.addEventListener("click", ({ target }) => {
    lastAction = target.closest?.("#jobs [data-action]")?.dataset.action ?? null;
  });
  const answerJobs = (job) => {
    nameJob(job);
    if (lastAction === "open") {
      setTimeout(() => document.querySelector(".result").scrollIntoView({ block: "nearest" }), 120);
    }
  };

  document.addEventListener("focusin", ({ target }) => {
    pressed = target.matches?.("#jobs [data-action]") ? { ...target.dataset } : null;
  });
  document.addEventListener(
    "toggle",
    ({ target }) => {
      if (!target.matches?.("#jobs details") || !target.isConnected) return;
      if (target.open) opened.add(idOf(target));
      else opened.delete(idOf(target));
    },
    true,
  );
  const keepPlace = () => {
    for (const details of document.querySelectorAll("#jobs details:not([open])")) {
      if (opened.has(idOf(details))) details.open = true;
    }
    if (!pressed || document.activeElement !== document.body) return;
    const card = [...document.querySelectorAll("#jobs .job")].find((card) => card.dataset.id === pressed.job);
    const same = card?.querySelector(`[data-action="${pressed.action}"]:not(:disabled)`);
    (same ?? card?.querySelector("button:not(:disabled)"))?.focus({ preventScroll: true });
  };

  const answerGenerate = (job) => {
    // The page needs a moment to draw what the server said.
    setTimeout(() => {
      mark();
      const field = document.querySelector(".field:has(.problem)");
      if (!field) {
        nameJob(job);
        // On a phone the result is below the form: show that something happens.
        document.querySelector(".result").scrollIntoView({ block: "nearest" });
        return;
      }
      const input = inputsOf(field)[0];
      field.scrollIntoView({ block: "center" });
      if (input) input.focus({ preventScroll: true });
    }, 120);
  };

  // Clips play by themselves, but not for those who asked their system for less motion: they start them.
  const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
  const held = new WeakSet();
  document.addEventListener(
    "loadstart",
    ({ target }) => {
      if (lessMotion.matches && target.autoplay) held.add(target);
    },
    true,
  );
  document.addEventListener(
    "play",
    ({ target }) => {
      if (held.delete(target)) target.pause();
    },
    true,
  );

  // The buttons of the examples have their name beside the picture; Gradio would read it out twice.
  for (const picture of document.querySelectorAll(".example img")) picture.alt = "";

  const refresh = () => {
    mark();
    keepPlace();
  };
  new MutationObserver(refresh).observe(document.body, { childList: true, subtree: true });
  window.studio = { answerGenerate, answerJobs, copyLink, formIsBack, goOn, keepInTab, keepValues, nameJob, recallForm };
}
