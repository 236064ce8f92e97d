/** What the confined process runs: it takes two paths, and gives their comparison. */
import { compareTensorFiles, type TensorComparison } from './compare.js'

export default function compare(task: {
  readonly recorded: string
  readonly found: string
}): Promise<TensorComparison> {
  return compareTensorFiles(task.recorded, task.found)
}
