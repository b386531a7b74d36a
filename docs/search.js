// The search of the site, in the place of the fuzzy one: search.py has worked out what each word of each section
// weighs, this adds up. It answers to the name that smalldocs looks for.
(() => {
  "use strict";
  const also = /*ALSO*/, stop = new Set(/*STOP*/), aPage = /*A_PAGE*/;
  const stem = (word) => {
    for (const ending of ["ings", "ing", "ies", "ed", "es", "s"]) {
      if (word.endsWith(ending) && word.length - ending.length >= 3 && !word.endsWith("ss")) {
        return word.slice(0, word.length - ending.length) + (ending === "ies" ? "y" : "");
      }
    }
    return word.endsWith("e") && word.length > 4 ? word.slice(0, -1) : word;
  };
  const words = (text) => [...new Set((text.toLowerCase().match(/[\p{L}\p{N}][\p{L}\p{N}_-]*/gu) || []).flatMap((word) =>
    [...new Set([word, ...word.split(/[_-]/).filter(Boolean)])].filter((w) => !stop.has(w)).map(stem)))];
  const weight = (entry, term) => {
    if (Object.hasOwn(entry.words, term)) return entry.words[term];
    let best = 0;
    if (term.length >= 3) for (const word in entry.words) if (word.startsWith(term)) best = Math.max(best, entry.words[word]);
    return 0.6 * best;
  };
  window.Fuse = class {
    constructor(entries) { this.entries = entries; }
    search(query, { limit = 20 } = {}) {
      const asked = words(query).map((term) => Object.hasOwn(also, term) ? [term, also[term]] : [term]);
      const scored = this.entries.map((entry, place) => {
        let total = 0, met = 0;
        for (const terms of asked) {
          const best = Math.max(...terms.map((term, n) => (n ? 0.8 : 1) * weight(entry, term)));
          total += best;
          met += best > 0;
        }
        return [total * (met / asked.length) ** 2, place];
      }).filter(([score]) => score > 0).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
      const ofPage = {};
      return scored.map(([, place]) => this.entries[place]).filter((entry) => {
        const page = entry.href.split("#")[0];
        ofPage[page] = (ofPage[page] || 0) + 1;
        return ofPage[page] <= aPage;
      }).slice(0, limit).map((item) => ({ item }));
    }
  };
})();
