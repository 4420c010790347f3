// Mistakes in branches of native/ that only direct calls into the addon take, or rare states of a job.
const rule = (name, from, to, breaks) => ({
  name,
  file: 'native/core/op_rules.h',
  from,
  to,
  breaks,
  tests: ['test/runtime/native-rules.test.ts'],
})

export default [
  rule(
    'an-empty-axis-has-a-largest',
    'if (a.A == 0 && a.T > 0',
    'if (a.A < 0 && a.T > 0',
    'rows are read that are not there',
  ),
  rule(
    'permutation-of-any-size',
    'if (a.size > INT32_MAX) fail(ErrorCode::shape, "at most',
    'if (a.size < 0) fail(ErrorCode::shape, "at most',
    'indices overflow',
  ),
  rule(
    'second-density-of-one-expert',
    'a.second_density && a.K < 2',
    'a.second_density && a.K < 1',
    'a second expert is read that is not there',
  ),
  rule(
    'half-a-plan-of-slots',
    '!a.assignment != !a.row_of',
    '!a.assignment && a.row_of',
    'a null pointer is written to',
  ),
  rule('masked-sum-of-dx', 'if (a.dx_sum && a.mask)', 'if (a.dx_sum && !a.mask)', 'the gradient of padding is added'),
  rule('half-a-factored-moment', '!a.row != !a.col', '!a.row && a.col', 'a null pointer is updated'),
  rule('no-moment', '!a.row && !a.v', '!a.row && !a.v && a.m', 'a null pointer is updated'),
  rule('heads-without-keys', 'a.heads % a.kv_heads != 0', 'a.heads < a.kv_heads', 'heads read keys beyond the last'),
  rule('cache-without-room', 'if (a.M < a.N)', 'if (a.M + 1 < a.N)', 'keys are written behind their slot'),
  rule('too-few-slots', '!a.slot && a.S < a.B', 'a.slot && a.S < a.B', 'keys are written behind the cache'),
  rule('odd-heads', 'a.d % 2 != 0', 'a.d < 2', 'the last number of a head is not rotated'),
  rule('statistics-of-no-expert', 'a.K < 1 || a.K > a.E', 'a.K > a.E', 'sums over no expert are read'),
  rule(
    'ends-without-a-plan',
    'if (a.assignment || a.ends || a.row_of || a.weight)',
    'if (a.assignment || a.row_of || a.weight)',
    'ends of rows that there are not',
  ),
  rule(
    'bias-of-plain-activations',
    'a.mult_bias && !is_gated(a.activation)',
    'a.mult_bias && is_gated(a.activation) && a.P < 0',
    'a bias without effect',
  ),
  rule(
    'gradient-of-no-weight',
    'a.dweight && !a.weight',
    'a.dweight && !a.dx',
    'a gradient of a weight that is not there',
  ),
  rule(
    'half-the-gradients',
    'parameter && !gradient != !a.dw1',
    'parameter && gradient && !a.dw1',
    'a parameter without its gradient',
  ),
]
