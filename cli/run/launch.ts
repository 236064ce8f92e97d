/** The command of a run: its output is shown and kept, signals are passed on, and how it ended is what we end with. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { constants } from 'node:os'
import type { Readable } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'
import { setTimeout as sleep } from 'node:timers/promises'
import { BobbinError, escapeOutput, systemCode } from '../../daemon/model/index.js'
import { outliveReaders, show } from '../output.js'

const PASSED_ON = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const
/** Whoever asks so often means it. */
const ENDING_SIGNALS_MAX = 3
/** For what the command has left in the background, which may hold its pipes for ever: tee and its like end by then. */
const GRACE_MS = 1000
/** The event loop has read what was there when a timer has run twice. */
const TURN_MS = 10
/** More than a pipe holds: who has read so much behind the command's end has read all that came before it. */
const PIPE_BYTES_MAX = 16 * 2 ** 20

export interface LaunchOptions {
  readonly cwd?: string
  readonly env: NodeJS.ProcessEnv
  /** Where stdout and stderr are kept. */
  readonly logs: { readonly stdout: string; readonly stderr: string }
  /** Its stdout belongs to us with `--json`: the command's goes to stderr. */
  readonly isJson: boolean
  /** The command may be a stranger's: what it prints is escaped on a terminal. The logs have it as it is. */
  readonly isForeign?: boolean
  /** Told of a log that could not be kept to its end: its name. */
  onLogCut(name: string): void
}

/** Exit code, or 128 + the number of the signal. Throws INVALID_ARGUMENT when it cannot be started. */
export async function launch(command: readonly string[], options: LaunchOptions): Promise<number> {
  const { cwd, env, logs, isJson, isForeign = false, onLogCut } = options
  const child = spawn(command[0]!, command.slice(1), {
    stdio: ['inherit', 'pipe', 'pipe'],
    env,
    ...(cwd !== undefined && { cwd }),
    // A group of its own: a Ctrl-C on the terminal comes to us alone, and is passed on once.
    detached: true,
  })
  const started = new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve)
    child.once('error', error => reject(notStarted(command[0]!, error)))
  })
  const ended = new Promise<number>(resolve =>
    child.once('exit', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal]))),
  )
  await started
  outliveReaders()
  const kept = [
    keep(child.stdout, isJson ? process.stderr : process.stdout, logs.stdout, {
      ended,
      isForeign,
      onCut: () => onLogCut('stdout.log'),
    }),
    keep(child.stderr, process.stderr, logs.stderr, { ended, isForeign, onCut: () => onLogCut('stderr.log') }),
  ]
  const stopPassing = passSignals(child)
  try {
    const code = await ended
    await Promise.all(kept)
    return code
  } finally {
    stopPassing()
  }
}

/** To the end of what the command has written, and a little longer for what it has left in the background. */
async function keep(
  pipe: Readable,
  shown: NodeJS.WriteStream,
  path: string,
  { ended, isForeign, onCut }: { readonly ended: Promise<unknown>; readonly isForeign: boolean; onCut(): void },
): Promise<void> {
  const file = createWriteStream(path, { mode: 0o644 })
  const decoder = isForeign && shown.isTTY ? new StringDecoder('utf8') : undefined
  let isBroken = false
  file.on('error', () => {
    // A full disk ends the copy, not the run.
    if (!isBroken) onCut()
    isBroken = true
  })
  let chunks = 0
  let isWaiting = true
  let isOver = false
  let bytesBehind = 0
  void ended.then(async () => {
    isOver = true
    await sleep(GRACE_MS, undefined, { ref: false })
    for (let seen = -1; seen !== chunks || !isWaiting; await sleep(TURN_MS, undefined, { ref: false })) seen = chunks
    pipe.destroy()
  })
  try {
    for await (const chunk of pipe as AsyncIterable<Buffer>) {
      chunks++
      isWaiting = false
      await show(shown, decoder === undefined ? chunk : escapeOutput(decoder.write(chunk)))
      if (!isBroken && !file.write(chunk)) await once(file, 'drain').catch(() => {})
      isWaiting = true
      if (isOver) bytesBehind += chunk.length
      if (bytesBehind > PIPE_BYTES_MAX) break
    }
  } catch {
    // It was destroyed: nothing was left in it.
  }
  if (!isBroken) await new Promise<void>(resolve => file.end(() => resolve()))
}

function passSignals(child: ChildProcess): () => void {
  let ending = 0
  const handlers = PASSED_ON.map(signal => {
    const handler = () => {
      if (signal === 'SIGINT' || signal === 'SIGTERM') ending++
      sendToGroup(child, ending >= ENDING_SIGNALS_MAX ? 'SIGKILL' : signal)
    }
    return [signal, handler] as const
  })
  // Until now they meant: do not start. From now on they are the command's. One without a listener would end us, so there is
  // always one.
  const before = PASSED_ON.map(signal => [signal, process.listeners(signal)] as const)
  for (const [signal, handler] of handlers) process.on(signal, handler)
  for (const [signal, listeners] of before) for (const listener of listeners) process.off(signal, listener)
  const onExit = () => sendToGroup(child, 'SIGKILL')
  process.once('exit', onExit)
  return () => {
    process.off('exit', onExit)
    for (const [signal, listeners] of before) for (const listener of listeners) process.on(signal, listener)
    for (const [signal, handler] of handlers) process.off(signal, handler)
  }
}

function sendToGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal)
  } catch (error) {
    // Gone, or another user's by now (sudo): there is nothing that we could do about it.
    if (systemCode(error) !== 'ESRCH' && systemCode(error) !== 'EPERM') throw error
  }
}

function notStarted(program: string, error: Error): BobbinError {
  const why = systemCode(error) === 'ENOENT' ? 'there is no such program' : error.message
  return new BobbinError('INVALID_ARGUMENT', `cannot start ${program}: ${why}`, { cause: error })
}
