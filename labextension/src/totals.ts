/** What a run used, summed over its steps. Pure. */
import type { Step } from './timeline';

export interface Totals {
  /** Replies of the model, summaries too. */
  replies: number;
  input: number;
  output: number;
  /** Some tokens were counted here, as the model's server told none. */
  estimated: boolean;
  /** USD of the replies that have a price; null: none has. */
  cost: number | null;
}

export function totals(steps: readonly Step[], count: number): Totals {
  const sum: Totals = { replies: 0, input: 0, output: 0, estimated: false, cost: null };
  for (let at = 0; at < count; at++) {
    const step = steps[at]!;
    if (step.kind === 'model' && step.replied !== null) {
      sum.replies++;
      sum.input += step.usage?.input ?? 0;
      sum.output += step.usage?.output ?? 0;
      sum.estimated ||= step.usage?.estimated ?? false;
      sum.cost = step.cost === null ? sum.cost : (sum.cost ?? 0) + step.cost;
    }
  }
  return sum;
}
