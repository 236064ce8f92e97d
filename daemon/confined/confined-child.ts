/** The process that `runConfined` starts: takes one task, says what came of it, and ends. */
import { localError } from '../model/index.js'
import type { ConfinedMessage } from './confined.js'

type Run = (task: unknown, onProgress: (done: number) => void) => unknown

const say = (message: ConfinedMessage, then = () => {}) => process.send?.(message, then)

process.once('message', async ({ module, task }: { readonly module: string; readonly task: unknown }) => {
  const end = () => process.disconnect()
  try {
    const { default: run } = (await import(module)) as { readonly default: Run }
    const result = await run(task, done => say({ kind: 'progress', done }))
    say({ kind: 'result', result }, end)
  } catch (error) {
    const { code, message } = localError('work', error)
    say({ kind: 'error', code, message }, end)
  }
})
