/**
 * Reads a pickle without executing it (opcodes: Lib/pickletools.py of CPython). A pickle is a program for a stack machine, which may
 * import and call anything. This machine makes inert values, and knows by name the few functions that rebuild a tensor: it notes
 * what they were given. A pickle that names anything else is refused, with that name.
 */
import { refused } from './tensor-file.js'

export type PyValue = null | boolean | number | bigint | string | Buffer | PyNode
export type PyNode = PyList | PyDict | PyGlobal | PyCall | PyPersistent

export class PyList {
  constructor(
    readonly kind: 'list' | 'tuple' | 'set',
    readonly items: PyValue[],
  ) {}
}
export class PyDict {
  readonly entries: [key: PyValue, value: PyValue][] = []
}
/** A name of a module: `torch.FloatStorage`. Nothing is imported. */
export class PyGlobal {
  constructor(readonly name: string) {}
}
/** A function and what it was given. Nothing is called. */
export class PyCall {
  constructor(
    readonly name: string,
    readonly args: readonly PyValue[],
  ) {}
}
/** What torch keeps outside of the pickle. */
export class PyPersistent {
  constructor(readonly id: PyValue) {}
}

export interface PickleNames {
  /** Functions that may stand in a pickle as being called. */
  readonly functions: ReadonlySet<string>
  /** Types that may stand in a pickle as values. */
  isType(name: string): boolean
}

const MARK = Symbol('mark')
const ORDERED_DICT = 'collections.OrderedDict'
const PROTOCOL_MAX = 5

/** Throws INVALID_ARGUMENT. */
export function readPickle(bytes: Buffer, names: PickleNames): PyValue {
  return new Machine(bytes, names).run()
}

class Machine {
  #at = 0
  readonly #stack: (PyValue | typeof MARK)[] = []
  readonly #memo = new Map<number, PyValue>()

  constructor(
    private readonly bytes: Buffer,
    private readonly names: PickleNames,
  ) {}

  run(): PyValue {
    for (;;) {
      const opcode = this.#take(1)[0]!
      if (opcode === 0x2e) return this.#pop()
      const value = this.#value(opcode)
      if (value === undefined) this.#act(opcode)
      else this.#stack.push(value)
    }
  }

  /** What an opcode puts on the stack; undefined: it is not one that only does that. */
  #value(opcode: number): PyValue | undefined {
    switch (opcode) {
      case 0x4e: // NONE
        return null
      case 0x88: // NEWTRUE
        return true
      case 0x89: // NEWFALSE
        return false
      case 0x4a: // BININT
        return this.#take(4).readInt32LE()
      case 0x4b: // BININT1
        return this.#take(1)[0]!
      case 0x4d: // BININT2
        return this.#take(2).readUInt16LE()
      case 0x8a: // LONG1
        return wholeNumber(this.#take(this.#length(1)))
      case 0x47: // BINFLOAT
        return this.#take(8).readDoubleBE()
      case 0x8c: // SHORT_BINUNICODE
        return this.#take(this.#length(1)).toString('utf8')
      case 0x58: // BINUNICODE
        return this.#take(this.#length(4)).toString('utf8')
      case 0x43: // SHORT_BINBYTES
        return this.#take(this.#length(1))
      case 0x42: // BINBYTES
        return this.#take(this.#length(4))
      case 0x5d: // EMPTY_LIST
        return new PyList('list', [])
      case 0x29: // EMPTY_TUPLE
        return new PyList('tuple', [])
      case 0x8f: // EMPTY_SET
        return new PyList('set', [])
      case 0x7d: // EMPTY_DICT
        return new PyDict()
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        return new PyList('tuple', this.#popMany(opcode - 0x84))
      case 0x74: // TUPLE
        return new PyList('tuple', this.#popToMark())
      case 0x68: // BINGET
        return this.#remembered(this.#length(1))
      case 0x6a: // LONG_BINGET
        return this.#remembered(this.#length(4))
      case 0x63: // GLOBAL
        return this.#global(this.#line(), this.#line())
      case 0x93: // STACK_GLOBAL
        return this.#global(...this.#popMany(2))
      case 0x51: // BINPERSID
        return new PyPersistent(this.#pop())
      case 0x52: // REDUCE
        return this.#call(...this.#popMany(2))
      default:
        return undefined
    }
  }

  #act(opcode: number): void {
    switch (opcode) {
      case 0x80: // PROTO
        if (this.#take(1)[0]! > PROTOCOL_MAX) throw refused('it is a pickle of an unknown version')
        break
      case 0x95: // FRAME
        this.#take(8)
        break
      case 0x28: // MARK
        this.#stack.push(MARK)
        break
      case 0x61: // APPEND
        this.#add([this.#pop()])
        break
      case 0x65: // APPENDS
      case 0x90: // ADDITEMS
        this.#add(this.#popToMark())
        break
      case 0x73: // SETITEM
        set(this.#popMany(2), this.#top())
        break
      case 0x75: // SETITEMS
        set(this.#popToMark(), this.#top())
        break
      case 0x71: // BINPUT
        this.#memo.set(this.#length(1), this.#top())
        break
      case 0x72: // LONG_BINPUT
        this.#memo.set(this.#length(4), this.#top())
        break
      case 0x94: // MEMOIZE
        this.#memo.set(this.#memo.size, this.#top())
        break
      case 0x62: // BUILD
        // Attributes of a dictionary (`_metadata` of a state_dict) are no entries of it.
        this.#pop()
        if (!(this.#top() instanceof PyDict)) throw refused('it sets attributes of something that is not a dictionary')
        break
      default:
        throw refused(`it has the pickle opcode 0x${opcode.toString(16)}, which rebuilding tensors does not need`)
    }
  }

  #global(module?: PyValue, name?: PyValue): PyGlobal {
    if (typeof module !== 'string' || typeof name !== 'string') throw damaged()
    const full = `${module}.${name}`
    if (full === ORDERED_DICT || this.names.functions.has(full) || this.names.isType(full)) return new PyGlobal(full)
    throw refused(
      `it names ${JSON.stringify(full.slice(0, 200))}, which only Python could make by executing the file; nothing was executed`,
    )
  }

  #call(called?: PyValue, args?: PyValue): PyValue {
    if (!(called instanceof PyGlobal) || !(args instanceof PyList)) throw damaged()
    if (called.name === ORDERED_DICT) return orderedDict(args.items)
    if (!this.names.functions.has(called.name)) throw refused(`it calls ${called.name}, which is a type`)
    return new PyCall(called.name, args.items)
  }

  #add(items: PyValue[]): void {
    const list = this.#top()
    if (!(list instanceof PyList)) throw damaged()
    for (const item of items) list.items.push(item)
  }

  #take(length: number): Buffer {
    if (this.#at + length > this.bytes.length) throw refused('its pickle is cut short')
    this.#at += length
    return this.bytes.subarray(this.#at - length, this.#at)
  }

  #length(bytes: 1 | 4): number {
    return this.#take(bytes).readUIntLE(0, bytes)
  }

  #line(): string {
    const end = this.bytes.indexOf(0x0a, this.#at)
    if (end < 0) throw refused('its pickle is cut short')
    const line = this.#take(end - this.#at).toString('utf8')
    this.#take(1)
    return line
  }

  #pop(): PyValue {
    const value = this.#stack.pop()
    if (value === undefined || value === MARK) throw damaged()
    return value
  }

  #popMany(count: number): PyValue[] {
    return Array.from({ length: count }, () => this.#pop()).reverse()
  }

  #popToMark(): PyValue[] {
    const at = this.#stack.lastIndexOf(MARK)
    if (at < 0) throw damaged()
    const items = this.#stack.splice(at)
    return items.slice(1) as PyValue[]
  }

  #top(): PyValue {
    const value = this.#stack.at(-1)
    if (value === undefined || value === MARK) throw damaged()
    return value
  }

  #remembered(index: number): PyValue {
    const value = this.#memo.get(index)
    if (value === undefined) throw damaged()
    return value
  }
}

function set(items: readonly PyValue[], dict: PyValue): void {
  if (!(dict instanceof PyDict) || items.length % 2 !== 0) throw damaged()
  for (let i = 0; i < items.length; i += 2) dict.entries.push([items[i]!, items[i + 1]!])
}

function orderedDict([pairs, ...more]: readonly PyValue[]): PyDict {
  const dict = new PyDict()
  if (more.length > 0 || (pairs !== undefined && !(pairs instanceof PyList))) throw damaged()
  for (const pair of pairs?.items ?? []) {
    if (!(pair instanceof PyList) || pair.items.length !== 2) throw damaged()
    set(pair.items, dict)
  }
  return dict
}

function damaged() {
  return refused('its pickle is damaged')
}

/** Two's complement, little-endian. */
function wholeNumber(bytes: Buffer): number | bigint {
  let value = 0n
  for (const byte of [...bytes].reverse()) value = (value << 8n) | BigInt(byte)
  if (bytes.length > 0 && bytes.at(-1)! >= 0x80) value -= 1n << BigInt(8 * bytes.length)
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : value
}
