/**
 * Runs what a stranger wrote (an expression, a schema) in a process of its own, which is ended when its time is over.
 *
 * A thread is not enough: V8 ends the whole process when one allocation of a thread passes its limit by far (text that
 * doubles forty times did), in spite of `resourceLimits`. The process has a heap of a stated size, a limit on CPU seconds that
 * holds when we are gone, no core file, and no environment: no credentials to find. Its functions are ours; only what
 * they work on is foreign, so it keeps our rights to read files.
 *
 * A module to run has a default export: `(task, onProgress) => result`. Both ways go through a structured clone.
 */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { BobbinError, type ErrorCode, throwIfAborted, WORKER_FLAGS } from '../model/index.js'

export interface ConfinedOptions {
  /** What is done, for messages: "select entries". */
  readonly what: string
  readonly deadlineMs: number
  /** Of JavaScript's heap. */
  readonly heapMib: number
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((done: number) => void) | undefined
}

export type ConfinedMessage =
  | { readonly kind: 'progress'; readonly done: number }
  | { readonly kind: 'result'; readonly result: unknown }
  | { readonly kind: 'error'; readonly code: ErrorCode; readonly message: string }

const CHILD = fileURLToPath(new URL('confined-child.js', import.meta.url))
/** Garbage is collected by threads of their own, and their time counts, too. */
const CPU_FACTOR = 4
/** /bin/sh alone can set limits for what it becomes. */
const LIMITED = 'ulimit -c 0; ulimit -t "$1"; shift; exec "$@"'

/** Throws what the module throws (as a BobbinError), INVALID_ARGUMENT when it takes too long or too much, INTERRUPTED. */
export async function runConfined<Result>(module: URL, task: unknown, options: ConfinedOptions): Promise<Result> {
  const { what, deadlineMs, heapMib, signal, onProgress } = options
  throwIfAborted(signal)
  const cpuSeconds = Math.ceil((deadlineMs * CPU_FACTOR) / 1000)
  const node = [process.execPath, `--max-old-space-size=${heapMib}`, ...WORKER_FLAGS, CHILD]
  const child = spawn('/bin/sh', ['-c', LIMITED, 'sh', String(cpuSeconds), ...node], {
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    env: {},
    serialization: 'advanced',
  })
  let isLate = false
  const kill = () => child.kill('SIGKILL')
  const timer = setTimeout(() => {
    isLate = true
    kill()
  }, deadlineMs)
  signal?.addEventListener('abort', kill)
  try {
    return await new Promise<Result>((resolve, reject) => {
      const fail = (code: ErrorCode, why: string) => reject(new BobbinError(code, `cannot ${what}: ${why}`))
      child.on('message', (message: ConfinedMessage) => {
        if (message.kind === 'progress') onProgress?.(message.done)
        else if (message.kind === 'result') resolve(message.result as Result)
        else reject(new BobbinError(message.code, message.message))
      })
      child.once('error', error => fail('LOCAL_IO', error.message))
      child.once('exit', (code, endedBy) => {
        if (signal?.aborted) reject(new BobbinError('INTERRUPTED', 'interrupted'))
        else if (isLate) fail('INVALID_ARGUMENT', `it takes longer than ${deadlineMs / 1000} s`)
        else if (endedBy === 'SIGABRT') fail('INVALID_ARGUMENT', `it needs more than ${heapMib} MiB of memory`)
        else if (endedBy === 'SIGXCPU') fail('INVALID_ARGUMENT', `it takes more than ${cpuSeconds} s of CPU`)
        else fail('INTERNAL', `its process ended with ${endedBy ?? code}`)
      })
      child.send({ module: module.href, task }, error => {
        if (error) fail('INTERNAL', error.message)
      })
    })
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', kill)
    kill()
  }
}
