/** A text put before another one of a file, which has that once. */
interface Edit {
  file: string
  before: string
  text: string
}

/** The edits of a recipe of docs/adding-an-op.md, for a feature whose name nobody will add, and what guards it. */
export interface AddedFeature {
  /** The heading of the recipe. */
  heading: string
  /** Files that change, and those that are new. */
  edits: readonly Edit[]
  created?: Readonly<Record<string, string>>
  /** The groups of ops_test with its cases. */
  cases: readonly string[]
  /** Code of a user, which prints `true`. */
  use: string
}

export const addedFeatures: readonly AddedFeature[] = [
  {
    heading: 'Adding a unary function',
    edits: [
      {
        file: 'native/core/unary_kinds.inc',
        before: '#undef UNARY\n',
        text: 'UNARY(gd, T(2) * std::atan(tanh_of(x / T(2))), T(1) / std::cosh(x))\n',
      },
      {
        file: 'lib/ops/unary.ts',
        before: "declare module '../tensor/tensor.js' {\n",
        text: `/**
 * The Gudermannian function, 2 atan(tanh(x / 2)), element by element.
 *
 * @example
 * \`\`\`ts
 * console.log(ops.gd(tensor(0)).item()) // → 0
 * \`\`\`
 */
export const gd = unary('gd')

`,
      },
      {
        file: 'lib/ops/unary.ts',
        before: '    /** See {@link ops.softplus}. */\n',
        text: '    /** See {@link ops.gd}. */\n    gd(): Tensor<D>\n',
      },
      { file: 'lib/ops/unary.ts', before: 'softplus })', text: 'gd, ' },
      { file: 'test/support/op-rows.ts', before: "  | 'softplus'\n", text: "  | 'gd'\n" },
      { file: 'test/support/op-rows.ts', before: "'softplus', 'neg',", text: "'gd', " },
      {
        file: 'test/native/cases/elementwise.cc',
        before: '    case UnaryKind::softplus:',
        text: '    case UnaryKind::gd: return 2 * std::atan(std::tanh(x / 2));\n',
      },
    ],
    cases: ['elementwise'],
    use: 'Math.abs(tensor([1]).gd().item() - 2 * Math.atan(Math.tanh(0.5))) < 1e-6',
  },
  {
    heading: 'Adding an activation of the experts',
    edits: [
      {
        file: 'native/core/activations.inc',
        before: '#undef ACTIVATION\n',
        text: `ACTIVATION(softsignlu, true, (ValueAndSlope<T>{z / (T(1) + std::fabs(z)), T(1) / ((T(1) + std::fabs(z)) * (T(1) + std::fabs(z)))}))
`,
      },
      { file: 'lib/ops/activation.ts', before: " | 'gelu' | 'relu'", text: " | 'softsignlu'" },
      { file: 'lib/ops/activation.ts', before: ']\nconst plain', text: ", 'softsignlu'" },
      {
        file: 'lib/ops/activation.ts',
        before: '. Plain: h = f(x w1ᵀ + b1)',
        text: ", z / (1 + |z|) in 'softsignlu'",
      },
      {
        file: 'test/native/moe_reference.h',
        before: '    case Activation::relu2:',
        text: '    case Activation::softsignlu: return z / (1 + std::fabs(z));\n',
      },
    ],
    cases: ['experts'],
    use: "new MoE({ dim: 4, activation: 'softsignlu' }).forward(ones([1, 3, 4])).outputs.shape[1] === 3",
  },
  {
    heading: 'Adding a number of the router',
    edits: [
      {
        file: 'lib/ops/route-options.ts',
        before: '  /** The experts are in that many equal groups',
        text: `  /** Factor of the uniform numbers by which 'random' drops second and later experts. Default 1. */
  luckyDraw: number({ min: 0, default: 1 }),
`,
      },
      { file: 'native/core/ops/moe.inc', before: 'NUMBER(noise_mult) NUMBER(eps)', text: 'NUMBER(lucky_draw, = 1) ' },
      { file: 'native/core/router.h', before: 'noise_mult, router_temperature,', text: 'lucky_draw, ' },
      { file: 'native/core/router.h', before: 'number(args.noise_mult),', text: 'number(args.lucky_draw), ' },
      { file: 'native/core/router.h', before: 'u, gate, static_cast<T>(threshold), eps)', text: 'lucky_draw * ' },
    ],
    cases: ['route'],
    use: 'new MoE({ dim: 4, luckyDraw: 2 }).gate instanceof Object',
  },
  {
    heading: 'Adding an optimizer',
    edits: [
      {
        file: 'native/core/ops/optimizers.inc',
        before: '// The average of a parameter',
        text: `OP(Signsgd, signsgd)  // Bernstein et al., arXiv 1802.04434: p −= lr · sign(g)
BATCH() UPDATED(p, "...")
INPUT(g, real, "...")
OPTIONAL_INPUT(norm, f64, "")
DTYPE() DIMS(size) SIZE(step, 1, int64_t{1} << 53) NUMBER(lr) PACKED(p)
FACTORS(Signsgd, signsgd, kRate)
END

`,
      },
      {
        file: 'native/core/optimizers.h',
        before: 'struct EmaUpdate : EmaFactors {\n',
        text: `struct SignsgdUpdate : SignsgdFactors {
  static FactorList factors(const SignsgdArgs& a) { return {{a.lr}}; }

  static constexpr int kState = 0;
  static void* state(const SignsgdArgs&, int) { return nullptr; }

  template <class T>
  ST_MOE_HOST_DEVICE static void apply(const T* f, T& p, T g, T*) {
    p -= f[kRate] * (g > T(0) ? T(1) : g < T(0) ? T(-1) : g);
  }
};

`,
      },
      {
        file: 'lib/optim/index.ts',
        before: 'export type { ShapedStateTensor',
        text: "export { SignSGD, type SignSGDOptions, type SignSGDValues } from './sign-sgd.js'\n",
      },
      {
        file: 'test/native/cases/optimizers.cc',
        before: 'void ema(const EmaArgs& a, Problem& p) {\n',
        text: `void signsgd(const SignsgdArgs& a, Problem& p) {
  if (skipped(p)) return;
  for (int64_t i = 0; i < a.size; ++i)
    p["p"][i] -= a.lr * static_cast<double>((p["g"][i] > 0) - (p["g"][i] < 0));
}

`,
      },
      {
        file: 'test/native/cases/optimizers.cc',
        before: '      table.add(EmaArgs{',
        text: '      end_by_norm(table.add(SignsgdArgs{.dtype = dtype, .size = size, .step = step, .lr = 0.1}), step);\n',
      },
      {
        file: 'test/native/cases/optimizers.cc',
        before: '  bytes(EmaArgs{',
        text: '  bytes(SignsgdArgs{.dtype = DType::f32, .size = weights, .step = 2, .lr = 1e-5}).without("norm");\n',
      },
      { file: 'test/native/cases/optimizers.cc', before: 'table.loop(ema)', text: 'table.loop(signsgd), ' },
    ],
    created: {
      'lib/optim/sign-sgd.ts': `import { number, type OptionsOf } from '../runtime/options.js'
import { declaredOptimizer, type GroupValues } from './declared.js'

const options = {
  /** Learning rate. Default 1e-4. May be set between steps: \`optimizer.lr = …\`. */
  lr: number({ min: 0, default: 1e-4 }),
}

/** Options of {@link SignSGD}. */
export interface SignSGDOptions extends OptionsOf<typeof options> {}

/** Options of a group of {@link SignSGD}. */
export interface SignSGDValues extends GroupValues<typeof options> {}

/**
 * Sign descent (Bernstein et al., arXiv 1802.04434): p −= lr · sign(g).
 *
 * @example
 * \`\`\`ts
 * const model = new Linear(4, 1)
 * scope(() => model.forward(ones([8, 4])).square().mean().backward())
 * new SignSGD(model.parameters(), { lr: 1e-4 }).step()
 * \`\`\`
 */
export class SignSGD extends declaredOptimizer('SignSGD', {
  options,
  state: {},
  numbers: (values) => values,
}) {}
`,
    },
    cases: ['optimizers'],
    use: '(() => { const p = new Parameter(tensor([1])); p.grad = tensor([3]); new SignSGD([p], { lr: 0.25 }).step(); return p.item() === 0.75 })()',
  },
]
