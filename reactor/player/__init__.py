"""The player: a trace of a loop's turns becomes one page on which they can be stepped through.

    python -m reactor.player TRACE [-o FILE.html] [--open]
    python -m reactor.player --gallery

    TRACE ─► tracefile.read ─► page.page (+ player.html, .css, .js, the sources) ─► one HTML file

The page's own part is in `player.html` and `player.css`, and in four files of JavaScript, to be read in this order:
`fold.js` (what the loop has after each event), `words.js` (an event in plain sentences), `view.js` (the figure) and
`player.js` (where we are, and what moves us). `README.md` in this folder says how to use it.
"""
