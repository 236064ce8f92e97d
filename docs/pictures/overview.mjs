/** The picture of the README: where bytes come from, where they are checked, and the programs that get them. */
import { arrow, box, svg, text } from './svg.mjs'

export function overview(theme) {
  const { ink, quiet, line, card, ours } = theme
  const title = (x, y, words) => text(x, y, words, { fill: ink, size: 15, weight: 600 })
  const note = (x, y, words) => text(x, y, words, { fill: quiet })
  const code = (x, y, words) => text(x, y, words, { fill: ink, isCode: true })
  const label = (x, y, words) => text(x, y, words, { fill: quiet, size: 12, anchor: 'middle' })
  return svg(880, 372, 'How Bobbin works: registry, daemon, cache, mount, loader and runs', [
    box(8, 84, 176, 176, { fill: card, stroke: line }),
    title(24, 112, 'Quilt registry'),
    note(24, 132, 'S3 bucket or folder'),
    code(24, 172, 'manifest'),
    note(24, 190, 'named by its top hash'),
    code(24, 222, 'objects'),
    note(24, 240, 'each with its hash'),

    box(252, 8, 620, 356, { fill: 'none', stroke: line, dash: '5 5', radius: 12 }),
    text(860, 30, 'your machine', { fill: quiet, anchor: 'end' }),

    box(272, 84, 188, 96, { fill: card, stroke: ours }),
    title(288, 112, 'bobbin daemon'),
    note(288, 134, 'fetches an object once,'),
    note(288, 152, 'checks every byte'),

    box(272, 228, 188, 96, { fill: card, stroke: line }),
    title(288, 256, 'cache'),
    note(288, 278, 'one file per hash,'),
    note(288, 296, 'shared by all packages'),

    box(540, 44, 150, 76, { fill: card, stroke: ours }),
    title(556, 72, 'mount'),
    code(556, 96, '/data'),
    box(540, 144, 150, 76, { fill: card, stroke: ours }),
    title(556, 172, 'loader'),
    note(556, 196, 'shuffled batches'),
    box(540, 244, 320, 92, { fill: card, stroke: ours }),
    title(556, 272, 'run'),
    note(556, 296, 'a container with both, and a record of'),
    note(556, 314, 'the code, image and data that it used'),

    box(732, 52, 134, 60, { fill: 'none', stroke: line }),
    text(799, 78, 'any program', { fill: ink, anchor: 'middle', weight: 600 }),
    text(799, 97, 'open, read, mmap', { fill: quiet, anchor: 'middle', size: 12 }),
    box(732, 152, 134, 60, { fill: 'none', stroke: line }),
    text(799, 178, 'training code', { fill: ink, anchor: 'middle', weight: 600 }),
    text(799, 197, 'PyTorch, webdataset', { fill: quiet, anchor: 'middle', size: 12 }),

    arrow(
      [
        [184, 132],
        [268, 132],
      ],
      line,
    ),
    label(218, 122, 'fetch'),
    arrow(
      [
        [366, 180],
        [366, 224],
      ],
      line,
    ),
    text(376, 207, 'verified', { fill: quiet, size: 12 }),
    arrow(
      [
        [460, 276],
        [500, 276],
        [500, 82],
        [536, 82],
      ],
      line,
    ),
    arrow(
      [
        [500, 182],
        [536, 182],
      ],
      line,
    ),
    arrow(
      [
        [690, 82],
        [728, 82],
      ],
      line,
    ),
    arrow(
      [
        [690, 182],
        [728, 182],
      ],
      line,
    ),
  ])
}
