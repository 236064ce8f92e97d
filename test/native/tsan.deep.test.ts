import { testSanitized } from './sanitized.js'

testSanitized('tsan', 'thread')
