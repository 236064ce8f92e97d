/** What the confined process runs: it takes two files, and gives their comparison. */
import { compareTensorFiles, type FileOfRun, type TensorComparison } from './compare.js'

interface Task {
  readonly recorded: FileOfRun
  readonly found: FileOfRun
}

export default function compare({ recorded, found }: Task): Promise<TensorComparison> {
  return compareTensorFiles(recorded, found)
}
