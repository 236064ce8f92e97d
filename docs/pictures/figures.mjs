/**
 * The chart of the README: three measurements beside those of other programs. Every number, date and machine is read
 * from the tables in bench/results, so the chart says nothing that was not measured.
 */
import { readFileSync } from 'node:fs'
import { box, svg, text } from './svg.mjs'

const results = new URL('../../bench/results/', import.meta.url)

const PANELS = [
  {
    title: 'Open 1,000,000 entries from S3',
    unit: 'seconds, less is better',
    file: 'quilt3.md',
    bars: [
      { label: 'Bobbin, verified', row: 'bobbin resolve, first time', isOurs: true },
      { label: 'quilt3, not verified', row: 'quilt3.Package.browse' },
    ],
  },
  {
    title: 'Read a cached 2 GiB file',
    unit: 'MiB/s, more is better',
    file: 'mount.md',
    bars: [
      { label: 'Bobbin, passthrough', row: 'sequential 1 MiB, first pass', column: 'passthrough', isOurs: true },
      { label: 'Bobbin, cached', row: 'sequential 1 MiB, first pass', column: 'cached', isOurs: true },
      { label: 'fuse-native (npm)', row: 'sequential 1 MiB, first pass', column: 'fuse-native' },
      { label: 'ext4, the file itself', row: 'sequential 1 MiB, first pass', column: 'ext4' },
    ],
  },
  {
    title: 'Train: 106 KB samples',
    unit: 'samples/s with 2 workers, more is better',
    file: 'loader.md',
    bars: [
      { label: 'Bobbin, paths', row: 'bobbin, paths, 2 workers', isOurs: true },
      { label: 'litData', row: 'litData, 2 workers' },
      { label: 'mosaicml-streaming', row: 'mosaicml-streaming, 2 workers' },
      { label: 'webdataset from nginx', row: 'webdataset, nginx, 2 workers' },
      { label: 'torch on raw local files', row: 'torch, raw files, 2 workers' },
    ],
  },
]

const WIDTH = 880
const PANEL = 270
const GAP = 35
const BAR_TOP = 66
const BAR_STEP = 42
const BAR_SPACE = 196

export function figures(theme) {
  const height = BAR_TOP + BAR_STEP * Math.max(...PANELS.map(({ bars }) => bars.length)) + 44
  return svg(
    WIDTH,
    height,
    'Bobbin measured beside other programs',
    PANELS.flatMap((panel, n) => drawn(panel, n * (PANEL + GAP), height, theme)),
  )
}

function drawn({ title, unit, file, bars }, x, height, { ink, quiet, ours, peer }) {
  const report = readReport(file)
  const values = bars.map(({ row, column }) => report.value(row, column))
  const widest = Math.max(...values.map(({ number }) => number))
  return [
    text(x, 20, title, { fill: ink, size: 15, weight: 600 }),
    text(x, 40, unit, { fill: quiet, size: 12 }),
    ...bars.flatMap(({ label, isOurs }, n) => {
      const y = BAR_TOP + n * BAR_STEP
      const width = Math.max(2, Math.round((values[n].number / widest) * BAR_SPACE))
      return [
        text(x, y + 10, label, { fill: ink, size: 12, weight: isOurs ? 600 : 400 }),
        box(x, y + 16, width, 12, { fill: isOurs ? ours : peer, radius: 2 }),
        text(x + width + 6, y + 26, values[n].shown, { fill: ink, size: 12 }),
      ]
    }),
    text(x, height - 24, `${report.date}, ${report.machine}`, { fill: quiet, size: 11 }),
    text(x, height - 8, `bench/results/${file}`, { fill: quiet, size: 11 }),
  ]
}

function readReport(file) {
  const lines = readFileSync(new URL(file, results), 'utf8').split('\n')
  const said = name => lines.find(line => line.startsWith(`${name}: `))?.slice(name.length + 2) ?? fail(file, name)
  const cells = line =>
    line
      .split('|')
      .slice(1, -1)
      .map(cell => cell.trim())
  return {
    date: said('date'),
    machine: said('machine'),
    /** The median in that row: in the column of that name, or in the first one behind the row's name. */
    value(row, column) {
      const at = lines.findIndex(line => cells(line)[0] === row)
      if (at < 0) fail(file, row)
      const head = lines.slice(0, at).findLast(line => lines[lines.indexOf(line) + 1]?.startsWith('| ---'))
      const index = column === undefined ? 1 : cells(head).indexOf(column)
      const shown = /^[\d,.]+/.exec(cells(lines[at])[index] ?? '')?.[0] ?? fail(file, `${row}, ${column}`)
      return { shown, number: Number(shown.replaceAll(',', '')) }
    },
  }
}

function fail(file, what) {
  throw new Error(`bench/results/${file} has no ${JSON.stringify(what)}, which the chart shows`)
}
