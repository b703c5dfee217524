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

  const answerGenerate = () => {
    // The page needs a moment to draw what the server said.
    setTimeout(() => {
      mark();
      const field = document.querySelector(".field:has(.problem)");
      if (!field) {
        // On a phone the result is below the form: show that something happens.
        document.querySelector(".result").scrollIntoView({ block: "nearest" });
        return;
      }
      const input = inputsOf(field)[0];
      field.scrollIntoView({ block: "center" });
      if (input) input.focus({ preventScroll: true });
    }, 120);
  };

  // The buttons of the examples have their name beside the picture; Gradio would read it out twice.
  for (const picture of document.querySelectorAll(".example img")) picture.alt = "";

  new MutationObserver(mark).observe(document.body, { childList: true, subtree: true });
  window.studio = { answerGenerate };
}
