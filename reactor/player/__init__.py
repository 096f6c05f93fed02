"""The player: turns the trace of a loop into one page, on which a reader steps through it.

    python -m reactor.player TRACE [-o FILE.html] [--open]
    python -m reactor.player --gallery

    TRACE ─► tracefile.read ─► page.page (+ player.html, .css, .js, the sources) ─► one HTML file

The page itself is `player.html`, `player.css` and four files of JavaScript. Read them in this order: `fold.js` (what
the loop has after each event), `words.js` (an event in plain sentences), `view.js` (the figure) and `player.js` (the
position, and what moves it). `README.md` in this folder says how to use the player.
"""
