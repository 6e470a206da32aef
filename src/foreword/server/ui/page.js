// The language of the page, and the keys that ask. Runs before anything is drawn.
const foreword = {
  stored: "foreword-language",

  // The visitor's choice, else the browser's language. The answer feeds the language switch.
  language() {
    const chosen = localStorage.getItem(foreword.stored);
    return foreword.speak(chosen || (navigator.language.startsWith("zh") ? "zh" : "en"));
  },

  remember(language) {
    localStorage.setItem(foreword.stored, language);
    return foreword.speak(language);
  },

  speak(language) {
    document.documentElement.lang = language;
    return language;
  },

  buttons: { question: "ask", sample: "label" },

  // Enter asks, also with Ctrl or Cmd; Shift+Enter is a new line; Enter that ends the input of Chinese characters is neither.
  pressed(event) {
    const box = event.key === "Enter" && !event.isComposing && event.target.closest("#question, #sample");
    if (!box) return;
    event.stopPropagation();
    if (event.shiftKey) return;
    event.preventDefault();
    document.getElementById(foreword.buttons[box.id]).click();
  },
};
foreword.language();
document.addEventListener("keydown", foreword.pressed, true);
// Gradio's own idea of Shift+Enter, which is to submit.
document.addEventListener("keypress", (event) => event.target.closest("#question, #sample") && event.stopPropagation(), true);
