/**
 * Globs on logical keys. A glob becomes an expression of RE2, whose matching takes time linear in the key whatever the
 * glob is: picomatch's expressions backtrack, and fourteen stars on a key of 120 letters took for ever.
 *
 *   *         any characters but a slash          [abc] [a-z] [^a]  one character of a set, or not of it
 *   ?         one character that is no slash      {a,b}  {a..e}     one of these; one character of a range
 *   **        between slashes: any folders        (a|b) @(a|b) ?(a) *(a) +(a)  one, one, at most one, any number, one or more
 *   \x        the character x itself              !glob  what the glob does not match
 *
 * The words mean what they mean to picomatch 4 with `dot: true` (test/unit/daemon/model/globs.test.ts compares them). A glob also
 * matches the key that is spelt like it, and a bracket that is never closed is itself.
 */
import { RE2JS } from 're2js'
import { BobbinError } from './errors.js'

/** Of all globs of one selection together: a key is compared with each character at most once per character of its own. */
export const GLOB_CHARACTERS_MAX = 65_536
/** Brackets in brackets; people nest two. */
const NESTING_MAX = 20
const QUANTIFIERS: Readonly<Record<string, string>> = { '@': '', '?': '?', '*': '*', '+': '+' }
/** What makes picomatch take a set for nothing but a set; `[ab]` without any of these is also the text `[ab]`. */
const SPECIAL_IN_SET = /[-*+?.^${}(|)[\]]/

/** Tells which keys one of the globs matches. Throws INVALID_ARGUMENT. */
export function compileGlobs(globs: readonly string[]): (key: string) => boolean {
  const characters = globs.reduce((sum, glob) => sum + glob.length, 0)
  if (characters > GLOB_CHARACTERS_MAX)
    throw refused(globs, `they have ${characters} characters, at most ${GLOB_CHARACTERS_MAX} together`)
  if (globs.includes('**')) return () => true
  const literal = new Set(globs)
  const [wanted, unwanted]: [string[], string[]] = [[], []]
  for (const glob of globs) {
    const { source, isNegated } = translate(glob)
    if (isNegated) unwanted.push(source)
    else wanted.push(source)
  }
  // One expression for all that are alike, so that many globs cost little more than one.
  const isMatch = wanted.length === 0 ? () => false : compile(globs, wanted)
  const misses = unwanted.map(source => compile(globs, [source]))
  return key => literal.has(key) || isMatch(key) || misses.some(isHit => !isHit(key))
}

/** The glob that matches this text alone. */
export function quoteGlob(text: string): string {
  return text.replace(/^\.(?=\/)|[\\*?[\]{}()!]/g, '\\$&')
}

function compile(globs: readonly string[], sources: readonly string[]): (key: string) => boolean {
  try {
    const expression = RE2JS.compile(`^(?:${sources.join('|')})$`, RE2JS.DOTALL)
    return key => expression.test(key)
  } catch (error) {
    throw refused(globs, error instanceof Error ? error.message : String(error))
  }
}

function refused(globs: readonly string[], why: string): BobbinError {
  const text = JSON.stringify(globs.length === 1 ? globs[0] : globs)
  const shown = text.length > 200 ? `${text.slice(0, 200)}…` : text
  return new BobbinError('INVALID_ARGUMENT', `not a glob, ${shown}: ${why}`)
}

interface Group {
  /** Where it ends in the glob. */
  readonly end: number
  readonly separator: string
  readonly quantifier: string
}

/** A glob as the source of an expression, to be anchored by the caller. Throws INVALID_ARGUMENT. */
function translate(glob: string): { readonly source: string; readonly isNegated: boolean } {
  let at = 0
  while (glob[at] === '!' && glob[at + 1] !== '(') at++
  const isNegated = at % 2 === 1
  if (glob.startsWith('./', at)) at += 2
  const { ends, withComma } = findBrackets(glob)
  const first = at
  const open: Group[] = []
  let source = ''
  /** Nothing of the path's component stands before. */
  let isFresh = true
  const enter = (group: Group, from: number) => {
    if (open.length >= NESTING_MAX) throw refused([glob], `brackets lie in more than ${NESTING_MAX} others`)
    open.push(group)
    source += '(?:'
    isFresh = true
    at = from
  }
  for (; at < glob.length; at++) {
    const c = glob[at]!
    const group = open.at(-1)
    const parenthesis = ends.get(at + 1)
    if (at === group?.end) {
      source += `)${group.quantifier}`
      open.pop()
      isFresh = false
    } else if (c === group?.separator) {
      source += '|'
      isFresh = true
    } else if ('@?*+!'.includes(c) && glob[at + 1] === '(' && parenthesis !== undefined) {
      if (c === '!') throw refused([glob], 'name what is not wanted in "exclude" instead of !(…)')
      enter({ end: parenthesis, separator: '|', quantifier: QUANTIFIERS[c]! }, at + 1)
    } else if (c === '(' && ends.has(at)) {
      enter({ end: ends.get(at)!, separator: '|', quantifier: '' }, at)
    } else if (c === '{' && withComma.has(at)) {
      enter({ end: ends.get(at)!, separator: ',', quantifier: '' }, at)
    } else if (c === '{' && ends.has(at) && glob.slice(at, ends.get(at)).includes('..')) {
      source += rangeOf(glob, at, ends.get(at)!)
      at = ends.get(at)!
      isFresh = false
    } else if (c === '[' && setEnd(glob, at) > 0) {
      source += setOf(glob, at, setEnd(glob, at))
      at = setEnd(glob, at)
      isFresh = false
    } else if (c === '/') {
      let behind = at
      while (glob.startsWith('/**', behind) && (behind + 3 === glob.length || glob[behind + 3] === '/')) behind += 3
      const isLast = behind === glob.length
      if (behind === at || at === first) source += '/'
      else if (!isLast) source += '/(?:.*/)?'
      // "a/**" has the file a in it; "*/**" does not have every file.
      else source += glob[at - 1] === '*' ? '/.*' : '(?:/.*)?'
      if (behind > at && at !== first) at = isLast ? behind - 1 : behind
      isFresh = true
    } else if (c === '*') {
      let behind = at
      while (glob[behind] === '*' && !(behind > at && glob[behind + 1] === '(' && ends.has(behind + 1))) behind++
      const next = glob[behind]
      const isBounded = next === undefined || '/{('.includes(next) || behind === group?.end || next === group?.separator
      const isFolders = behind - at === 2 && isFresh && isBounded
      if (isFolders && at === first && next === '/') {
        source += '(?:.*/)?'
        at = behind
      } else {
        source += isFolders ? '.*' : '[^/]*'
        at = behind - 1
        isFresh = false
      }
    } else {
      if (c === '\\' && at + 1 < glob.length) at++
      const char = String.fromCodePoint(glob.codePointAt(at)!)
      source += c === '?' ? '[^/]' : quote(char)
      at += char.length - 1
      isFresh = false
    }
  }
  return { source, isNegated }
}

/** Where each bracket that is closed ends, and which braces have a comma of their own. */
function findBrackets(glob: string): { readonly ends: Map<number, number>; readonly withComma: Set<number> } {
  const ends = new Map<number, number>()
  const withComma = new Set<number>()
  const open: number[] = []
  for (let at = 0; at < glob.length; at++) {
    const c = glob[at]!
    const last = open.at(-1)
    if (c === '\\') at++
    else if (c === '[' && setEnd(glob, at) > 0) at = setEnd(glob, at)
    else if (c === '{' || c === '(') open.push(at)
    else if (last !== undefined && c === ',' && glob[last] === '{') withComma.add(last)
    else if (last !== undefined && glob[last] === (c === '}' ? '{' : c === ')' ? '(' : '')) ends.set(open.pop()!, at)
  }
  for (const at of withComma) if (!ends.has(at)) withComma.delete(at)
  return { ends, withComma }
}

/** Where the set that begins here ends; -1: nowhere, so the bracket is itself. */
function setEnd(glob: string, start: number): number {
  let at = start + 1
  if (glob[at] === '^') at++
  // A "]" right at the start belongs to the set.
  if (glob[at] === ']') at++
  for (; at < glob.length; at++) {
    if (glob[at] === ']') return at
    if (glob[at] === '\\') at++
    else if (glob.startsWith('[:', at)) at = Math.max(at, glob.indexOf(':]', at) + 1)
  }
  return -1
}

function setOf(glob: string, start: number, end: number): string {
  const inner = glob.slice(start + 1, end)
  const isNegated = inner.startsWith('^')
  let members = ''
  for (let at = isNegated ? 1 : 0; at < inner.length; ) {
    const named = /^\[:[a-z]+:\]/.exec(inner.slice(at, at + 16))?.[0]
    if (named !== undefined) {
      members += named
      at += named.length
      continue
    }
    const [low, behindLow] = charAt(inner, at)
    at = behindLow
    members += code(low)
    if (inner[at] !== '-' || at + 1 >= inner.length) continue
    const [high, behindHigh] = charAt(inner, at + 1)
    if (high < low) throw refused([glob], `the range ${inner.slice(at - 1, behindHigh)} ends before it begins`)
    members += `-${code(high)}`
    at = behindHigh
  }
  if (isNegated) return `[^/${members}]`
  return SPECIAL_IN_SET.test(inner) ? `[${members}]` : `(?:${quote(`[${inner}]`)}|[${members}])`
}

/** The code point at an offset, and the offset behind it. */
function charAt(text: string, at: number): [number, number] {
  const from = text[at] === '\\' && at + 1 < text.length ? at + 1 : at
  const char = text.codePointAt(from)!
  return [char, from + String.fromCodePoint(char).length]
}

/** `{a..e}`. */
function rangeOf(glob: string, start: number, end: number): string {
  const [low, high, ...others] = glob.slice(start + 1, end).split('..')
  const codes = [low, high].map(char => (char !== undefined && [...char].length === 1 ? char.codePointAt(0)! : -1))
  if (others.length > 0 || codes.includes(-1))
    throw refused([glob], 'a range is of two single characters, like {a..e}: write others as {08,09,10}')
  return `[${code(Math.min(...codes))}-${code(Math.max(...codes))}]`
}

function code(char: number): string {
  return `\\x{${char.toString(16)}}`
}

function quote(text: string): string {
  return text.replace(/[\\^$.|?*+(){}[\]]/g, '\\$&')
}
