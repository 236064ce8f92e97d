/**
 * What libraries and Node.js would print on stderr by themselves: warnings of the AWS SDK (the version of Node.js, sockets in use, a
 * region for STS, times of its HTTP, numbers that are texts), which go to the console; warnings of Node.js (deprecations,
 * experimental features, too many listeners), which are events; and `DEBUG`, which the packages for proxies obey, and which prints
 * headers with passwords. Nobody who runs `bobbin` can do anything about them. A log gets them, a terminal does not.
 *
 * Imported first by whatever begins a process or a thread of ours, because an import is enough to make a library speak.
 * Our own code never writes to the console.
 */
import { format } from 'node:util'

let tell: (words: string) => void = () => {}

/** From now on they are told; before, and without, they are dropped. */
export function hearLibraries(teller: (words: string) => void): void {
  tell = teller
}

for (const level of ['debug', 'error', 'info', 'log', 'trace', 'warn'] as const) {
  console[level] = (...words: unknown[]) => tell(format(...words))
}

/** Somebody who looks for a fault asks Node.js for its warnings, with where they come from. (Into a file it writes them by itself.) */
const flags = [process.env.NODE_OPTIONS, ...process.execArgv].join(' ')
const isTraced = /--(trace-warnings|trace-deprecation|pending-deprecation)/.test(flags)

if (!flags.includes('--redirect-warnings')) {
  // Node.js's own listener writes to the console, too.
  process.removeAllListeners('warning')
  process.on('warning', ({ name, message, stack }) => {
    if (isTraced) process.stderr.write(`${stack ?? `${name}: ${message}`}\n`)
    else tell(`${name}: ${message}`)
  })
}

const { DEBUG } = process.env
if (DEBUG !== undefined) {
  const { default: debug } = await import('debug')
  debug.disable()
  // Taken away by that, and a program that `bobbin run` starts shall have it.
  process.env.DEBUG = DEBUG
}
