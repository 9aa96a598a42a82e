// Before MathJax is loaded: where it looks for mathematics, and the font that comes with it.
window.MathJax = {
  config: ["TeX-AMS-MML_HTMLorMML-full.js"],
  jax: ["input/TeX", "output/HTML-CSS"],
  tex2jax: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  "HTML-CSS": {
    availableFonts: [],
    preferredFont: null,
    webFont: "STIX-Web",
    imageFont: null,
    // An empty font to fall back on, without a request for about:blank, which browsers refuse.
    styles: { "@font-face": { "font-family": "MathJax_Blank", src: "local('none')" } },
  },
  messageStyle: "none",
  showMathMenu: false,
};
