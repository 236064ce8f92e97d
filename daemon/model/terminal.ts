/**
 * Words of strangers (keys, messages, commands, what other programs said) on a terminal. A terminal obeys control characters:
 * they move its cursor, set its title, answer in the keyboard's name; and overrides of direction make a name look like another.
 * So each of them is shown as `\u001b`, the way JSON writes it, which says what is there and does nothing.
 *
 * The one place that knows which characters these are: C0 and DEL, C1 (a terminal takes U+009B for ESC [), the controls of
 * direction, line and paragraph separators, and halves of surrogate pairs.
 */

const LINE_FEED = '\n'
/** Progress is shown with these. */
const PRINTED = ['\n', '\r', '\t', '\b']
const CONTROLS = /[\p{Cc}\p{Bidi_Control}\u2028\u2029\p{Cs}]/gu
/** What JSON text leaves as it is: it escapes C0 itself, and outside its strings there is none but white space. */
const CONTROLS_IN_JSON = /[\x7f-\x9f\p{Bidi_Control}\u2028\u2029]/gu

/** One line: a line feed is escaped like the rest, so that no name can begin a line of its own. */
export function escapeControls(text: string): string {
  return text.replace(CONTROLS, escaped)
}

/**
 * Text of several lines, of which all but the first are indented: those line feeds stay. A line feed in a stranger's word that
 * is followed by anything else is escaped, so that nothing of it looks like a line of ours.
 */
export function escapeMessage(text: string): string {
  return text.replace(CONTROLS, (found, at: number) =>
    found === LINE_FEED && text.startsWith('  ', at + 1) ? found : escaped(found),
  )
}

/** What a program of a stranger prints, which may go back, on, and to the next line, and do nothing else. */
export function escapeOutput(text: string): string {
  return text.replace(CONTROLS, found => (PRINTED.includes(found) ? found : escaped(found)))
}

/** The same document: only within strings of JSON can these characters stand, and there this is how they are written. */
export function escapeJson(text: string): string {
  return text.replace(CONTROLS_IN_JSON, escaped)
}

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
}
