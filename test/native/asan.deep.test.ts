import { testSanitized } from './sanitized.js'

testSanitized('asan', 'address,undefined')
