/**
 * A regular expression of Python's `re` as one of JavaScript's that finds the same.
 *
 * The pattern is read as CPython 3.11 reads it, and what it refuses is refused here. What JavaScript has no words for is
 * refused, too, and named: conditional groups, `\N{…}`, case that is ignored in a part only or in ASCII only, and
 * references to groups that may not have taken part (they fail in Python, and match nothing in JavaScript).
 *
 * Groups get names of our own, so that an atomic group can be a lookahead and a reference to what it found.
 */
import { BobbinError } from '../model/index.js'

/** Python's `MAXREPEAT`. */
const REPEAT_MAX = 2 ** 32 - 1
const DIGIT = '\\p{Nd}'
const SPACE = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'
const WORD = '\\p{L}\\p{N}_'
const ASCII_CLASSES: Readonly<Record<string, string>> = { d: '0-9', s: '\\t-\\r\\x20', w: 'A-Za-z0-9_' }
const CLASSES: Readonly<Record<string, string>> = { d: DIGIT, s: SPACE, w: WORD }
const ESCAPES: Readonly<Record<string, number>> = { a: 7, b: 8, f: 12, n: 10, r: 13, t: 9, v: 11, '\\': 92 }
const HEX_DIGITS: Readonly<Record<string, number>> = { x: 2, u: 4, U: 8 }
/** Alike for Python when case is ignored, and not for JavaScript. */
const KINDS_OF_I = [0x49, 0x69, 0x130, 0x131]

interface Flags {
  readonly i: boolean
  readonly a: boolean
  readonly m: boolean
  readonly s: boolean
  readonly x: boolean
}

/** What may be passed over: a branch of several, what is repeated from zero times, what must not be there. */
interface Part {
  isOptional: boolean
}

interface Group {
  readonly parts: readonly Part[]
  width: readonly [min: number, max: number] | undefined
}

interface Item {
  readonly source: string
  /** In characters. */
  readonly min: number
  readonly max: number
  readonly kind: 'atom' | 'assertion' | 'position' | 'repeat'
}

/** For `test` alone, which is Python's `search`. Throws INVALID_ARGUMENT, with the reason. */
export function pythonRegExp(pattern: string): RegExp {
  try {
    const parser = new Parser(pattern)
    // The search begins at the start, since V8 would look between the halves of a surrogate pair, too.
    const source = `^.*?(?:${parser.parse()})`
    const expression = new RegExp(source, parser.flags.i ? 'vsi' : 'vs')
    // It is compiled at its first use only, for either kind of text.
    expression.test('')
    expression.test('\u2028')
    return expression
  } catch (error) {
    if (error instanceof BobbinError) throw error
    const reason = error instanceof RangeError ? 'it is nested too deep' : String((error as Error).message)
    throw refusal(pattern, reason)
  }
}

function refusal(pattern: string, reason: string): BobbinError {
  const shown = JSON.stringify(pattern.length > 100 ? `${pattern.slice(0, 100)}…` : pattern)
  return new BobbinError('INVALID_ARGUMENT', `the pattern ${shown} cannot be used as Python uses it: ${reason}`)
}

class Parser {
  flags: Flags = { i: false, a: false, m: false, s: false, x: false }
  readonly #pattern: string
  readonly #chars: readonly string[]
  #at = 0
  #groups: Group[] = []
  #names = new Map<string, number>()
  #atomics = 0
  #parts: Part[] = []
  /** Of each look-behind around: groups that were there before it. */
  #lookBehinds: number[] = []
  readonly #references: { readonly group: Group; readonly parts: readonly Part[]; readonly name: string }[] = []

  constructor(pattern: string) {
    this.#pattern = pattern
    this.#chars = [...pattern]
  }

  parse(): string {
    const { source } = this.#alternatives(true)
    if (this.#at < this.#chars.length) this.#fail('there is a ) without its (')
    for (const { group, parts, name } of this.#references)
      if (group.parts.some(part => part.isOptional && !parts.includes(part)))
        this.#fail(`${name} refers to a group that may not have taken part, which Bobbin cannot translate`)
    return source
  }

  #fail(reason: string): never {
    throw refusal(this.#pattern, reason)
  }

  #take(text: string): boolean {
    if (!text.split('').every((char, i) => this.#chars[this.#at + i] === char)) return false
    this.#at += text.length
    return true
  }

  #get(): string {
    return this.#chars[this.#at++] ?? this.#fail('it ends too early')
  }

  #while(chars: RegExp, most = Number.POSITIVE_INFINITY): string {
    let text = ''
    while (text.length < most && chars.test(this.#chars[this.#at] ?? '')) text += this.#get()
    return text
  }

  #alternatives(isWhole = false): Item {
    const branches: Item[] = []
    const own: Part[] = []
    do {
      const part = { isOptional: false }
      own.push(part)
      this.#parts.push(part)
      branches.push(this.#sequence(isWhole && branches.length === 0))
      this.#parts.pop()
    } while (this.#take('|'))
    if (own.length > 1) for (const part of own) part.isOptional = true
    const min = Math.min(...branches.map(branch => branch.min))
    const max = Math.max(...branches.map(branch => branch.max))
    return { source: branches.map(branch => branch.source).join('|'), min, max, kind: 'atom' }
  }

  #sequence(mayHaveFlags: boolean): Item {
    const items: Item[] = []
    let part: Part = { isOptional: false }
    while (this.#at < this.#chars.length && !/[|)]/.test(this.#chars[this.#at]!)) {
      const char = this.#get()
      if (this.flags.x && /[ \t\n\r\v\f]/.test(char)) continue
      if (this.flags.x && char === '#') {
        while (this.#at < this.#chars.length && this.#get() !== '\n');
        continue
      }
      if (/[*+?{]/.test(char)) {
        const range = this.#range(char)
        if (range !== undefined) {
          items.push(this.#repeat(items.pop(), range, part))
          continue
        }
      }
      const next = { isOptional: false }
      this.#parts.push(next)
      const item = this.#item(char, mayHaveFlags && items.length === 0)
      this.#parts.pop()
      if (item === undefined) continue
      part = next
      items.push(item)
    }
    const sum = (of: (item: Item) => number) => items.reduce((all, item) => all + of(item), 0)
    return {
      source: items.map(item => item.source).join(''),
      min: sum(item => item.min),
      max: sum(item => item.max),
      kind: 'atom',
    }
  }

  /** `undefined`: the brace is a character as others. */
  #range(char: string): readonly [number, number] | undefined {
    if (char === '*') return [0, Number.POSITIVE_INFINITY]
    if (char === '+') return [1, Number.POSITIVE_INFINITY]
    if (char === '?') return [0, 1]
    const start = this.#at
    if (this.#chars[start] === '}') return undefined
    const low = this.#while(/^[0-9]$/)
    const high = this.#take(',') ? this.#while(/^[0-9]$/) : low
    if (!this.#take('}')) {
      this.#at = start
      return undefined
    }
    const range = [Number(low), high === '' ? Number.POSITIVE_INFINITY : Number(high)] as const
    if (range[0] >= REPEAT_MAX || Number(high) >= REPEAT_MAX) this.#fail('a repetition is too large')
    if (range[0] > range[1]) this.#fail('a repetition ends before it begins')
    return range
  }

  #repeat(item: Item | undefined, [low, high]: readonly [number, number], part: Part): Item {
    if (item === undefined || item.kind === 'position') return this.#fail('there is nothing to repeat')
    if (item.kind === 'repeat') this.#fail('a repetition is repeated')
    if (low === 0) part.isOptional = true
    const range = `{${low},${high === Number.POSITIVE_INFINITY ? '' : high}}`
    const repeated = `(?:${item.source})${range}`
    const times = (width: number, count: number) => (width === 0 ? 0 : width * count)
    const source = this.#take('?') ? `${repeated}?` : this.#take('+') ? this.#atomic(repeated) : repeated
    return { source, min: times(item.min, low), max: times(item.max, high), kind: 'repeat' }
  }

  #atomic(source: string): string {
    if (this.#lookBehinds.length > 0) this.#fail('Bobbin cannot translate atomic parts of a look-behind')
    const name = `a${++this.#atomics}`
    return `(?:(?=(?<${name}>${source}))\\k<${name}>)`
  }

  #item(char: string, mayHaveFlags: boolean): Item | undefined {
    const position = (source: string): Item => ({ source, min: 0, max: 0, kind: 'position' })
    if (char === '.') return one(this.flags.s ? '.' : '[^\\n]')
    if (char === '^') return position(this.flags.m ? '(?<![^\\n])' : '^')
    if (char === '$') return position(this.flags.m ? '(?![^\\n])' : '(?=\\n?$)')
    if (char === '[') return one(this.#set())
    if (char === '(') return this.#group(mayHaveFlags)
    if (char !== '\\') return one(this.#literal(char.codePointAt(0)!))
    const escaped = this.#get()
    if (escaped === 'A') return position('^')
    if (escaped === 'Z') return position('$')
    const word = `[${this.#classes.w}]`
    if (escaped === 'b') return position(`(?:(?<=${word})(?!${word})|(?<!${word})(?=${word}))`)
    // In Python there is none in an empty text.
    if (escaped === 'B') return position(`(?:(?<=${word})(?=${word})|(?<!${word})(?!${word})(?!^$))`)
    const set = this.#classOf(escaped)
    if (set !== undefined) return one(set)
    if (/[1-9]/.test(escaped)) return this.#numbered(escaped)
    return one(this.#literal(this.#escape(escaped)))
  }

  get #classes(): Readonly<Record<string, string>> {
    return this.flags.a ? ASCII_CLASSES : CLASSES
  }

  #classOf(letter: string): string | undefined {
    const members = this.#classes[letter.toLowerCase()]
    if (members === undefined) return undefined
    return letter === letter.toLowerCase() ? `[${members}]` : `[^${members}]`
  }

  /** The character that is meant. */
  #escape(letter: string): number {
    const digits = HEX_DIGITS[letter]
    if (digits !== undefined) {
      const hex = this.#while(/^[0-9a-fA-F]$/, digits)
      const code = Number.parseInt(hex, 16)
      if (hex.length < digits || code > 0x10ffff) this.#fail(`\\${letter}${hex} is not a character`)
      return code
    }
    if (/[0-7]/.test(letter)) {
      const octal = letter + this.#while(/^[0-7]$/, 2)
      if (Number.parseInt(octal, 8) > 0o377) this.#fail(`\\${octal} is not a character`)
      return Number.parseInt(octal, 8)
    }
    if (letter === 'N') this.#fail('Bobbin does not know the names of characters: write \\u and four digits')
    const code = ESCAPES[letter]
    if (code !== undefined) return code
    if (/[A-Za-z0-9]/.test(letter)) this.#fail(`Python does not know \\${letter}`)
    return letter.codePointAt(0)!
  }

  #literal(code: number): string {
    return this.flags.i && KINDS_OF_I.includes(code) ? `[${KINDS_OF_I.map(escapeCode).join('')}]` : escapeCode(code)
  }

  #numbered(first: string): Item {
    let digits = first
    if (/^[0-9]$/.test(this.#chars[this.#at] ?? '')) digits += this.#get()
    if (/^[0-7]{2}$/.test(digits) && /^[0-7]$/.test(this.#chars[this.#at] ?? '')) {
      const code = Number.parseInt(digits + this.#get(), 8)
      if (code > 0o377) this.#fail(`\\${code.toString(8)} is not a character`)
      return one(this.#literal(code))
    }
    return this.#reference(Number(digits), `\\${digits}`)
  }

  #reference(number: number, name: string): Item {
    const group = this.#groups[number - 1]
    if (group === undefined) return this.#fail(`${name} refers to a group that is not there yet`)
    if (group.width === undefined) return this.#fail(`${name} refers to the group that it is in`)
    const before = this.#lookBehinds[0]
    if (before !== undefined && number > before) this.#fail(`${name} refers to a group of its own look-behind`)
    this.#references.push({ group, parts: [...this.#parts], name })
    return { source: `\\k<g${number}>`, min: group.width[0], max: group.width[1], kind: 'atom' }
  }

  #set(): string {
    const isNegated = this.#take('^')
    let members = ''
    for (let isFirst = true; ; isFirst = false) {
      if (this.#at >= this.#chars.length) this.#fail('a [ has no ]')
      if (!isFirst && this.#take(']')) break
      const low = this.#member()
      if (this.#chars[this.#at] === '-' && this.#chars[this.#at + 1] !== ']') {
        this.#at++
        const high = this.#member()
        if (typeof low === 'string' || typeof high === 'string' || low > high)
          return this.#fail('a range of characters has no end, or ends before it begins')
        members += `${escapeCode(low)}-${escapeCode(high)}`
        if (this.flags.i && KINDS_OF_I.some(code => low <= code && code <= high))
          members += KINDS_OF_I.map(escapeCode).join('')
      } else members += typeof low === 'string' ? low : this.#literal(low)
    }
    return `[${isNegated ? '^' : ''}${members}]`
  }

  #member(): number | string {
    const char = this.#get()
    if (char !== '\\') return char.codePointAt(0)!
    const escaped = this.#get()
    return this.#classOf(escaped) ?? this.#escape(escaped)
  }

  #group(mayHaveFlags: boolean): Item | undefined {
    if (!this.#take('?')) return this.#capturing()
    if (this.#take('P')) {
      if (this.#take('<')) return this.#capturing(this.#name('>'))
      if (!this.#take('=')) this.#fail('Python knows (?P<name>…) and (?P=name)')
      const name = this.#name(')')
      return this.#reference(this.#names.get(name) ?? this.#fail(`there is no group ${name}`), name)
    }
    if (this.#take(':')) return this.#closed(item => `(?:${item.source})`)
    if (this.#take('>')) return this.#closed(item => this.#atomic(item.source))
    if (this.#take('#')) {
      while (this.#get() !== ')');
      return undefined
    }
    for (const sign of ['=', '!', '<=', '<!']) if (this.#take(sign)) return this.#look(sign)
    if (this.#take('(')) this.#fail('Bobbin cannot translate conditional groups')
    return this.#flagged(mayHaveFlags)
  }

  #closed(sourceOf: (item: Item) => string, kind: Item['kind'] = 'atom'): Item {
    const { flags } = this
    const item = this.#alternatives()
    if (!this.#take(')')) this.#fail('a ( has no )')
    this.flags = flags
    return { ...item, source: sourceOf(item), kind }
  }

  #name(end: string): string {
    let name = ''
    for (let char = this.#get(); char !== end; char = this.#get()) name += char
    if (!/^[\p{XID_Start}_]\p{XID_Continue}*$/u.test(name)) this.#fail(`${JSON.stringify(name)} is not a name`)
    return name
  }

  #capturing(name?: string): Item {
    const group: Group = { parts: [...this.#parts], width: undefined }
    const number = this.#groups.push(group)
    if (name !== undefined) {
      if (this.#names.has(name)) this.#fail(`two groups have the name ${name}`)
      this.#names.set(name, number)
    }
    return this.#closed(item => {
      group.width = [item.min, item.max]
      return `(?<g${number}>${item.source})`
    })
  }

  #look(sign: string): Item {
    const isBehind = sign.startsWith('<')
    const part = { isOptional: sign.endsWith('!') }
    this.#parts.push(part)
    if (isBehind) this.#lookBehinds.push(this.#groups.length)
    const item = this.#closed(inner => {
      if (isBehind && inner.min !== inner.max) this.#fail('what a look-behind looks for has no fixed width')
      return `(?${sign}${inner.source})`
    }, 'assertion')
    if (isBehind) this.#lookBehinds.pop()
    this.#parts.pop()
    return { ...item, min: 0, max: 0 }
  }

  #flagged(mayHaveFlags: boolean): Item | undefined {
    const on = this.#while(/^[aimsux]$/)
    const off = this.#take('-') ? this.#while(/^[imsx]$/) : ''
    const end = this.#get()
    const isKnown = (end === ':' || (end === ')' && off === '')) && on + off !== '' && !/a.*u|u.*a/.test(on)
    if (!isKnown || [...on].some(flag => off.includes(flag))) this.#fail('a group begins with (? and unknown signs')
    const before = this.flags
    const set = (flag: keyof Flags) => (before[flag] || on.includes(flag)) && !off.includes(flag)
    const flags: Flags = {
      ...{ i: set('i'), m: set('m'), s: set('s'), x: set('x') },
      a: set('a') && !(end === ':' && on.includes('u')),
    }
    if (flags.a && flags.i) this.#fail('Bobbin cannot ignore case in ASCII only')
    if (end === ')') {
      if (!mayHaveFlags) this.#fail('flags stand at the very start')
      this.flags = flags
      return undefined
    }
    if (flags.i !== before.i) this.#fail('Bobbin cannot ignore case in a part only: write (?i) at the start')
    return this.#scoped(flags)
  }

  #scoped(flags: Flags): Item {
    const before = this.flags
    this.flags = flags
    const item = this.#closed(inner => `(?:${inner.source})`)
    this.flags = before
    return item
  }
}

function one(source: string): Item {
  return { source, min: 1, max: 1, kind: 'atom' }
}

function escapeCode(code: number): string {
  return `\\u{${code.toString(16)}}`
}
