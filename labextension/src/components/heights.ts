/** Where rows of unknown height stand: estimated until measured. Pure; 10,000 rows are a few microseconds. */
export class Heights {
  private sizes: Float64Array = new Float64Array(0);
  private tops: Float64Array = new Float64Array(1);
  private count = 0;
  private clean = 0; // tops up to this row are right

  constructor(private readonly estimate: number) {}

  resize(count: number): void {
    if (count > this.sizes.length) {
      const more = new Float64Array(Math.max(count, this.sizes.length * 2, 64)).fill(this.estimate);
      more.set(this.sizes.subarray(0, this.count));
      this.sizes = more;
      const tops = new Float64Array(more.length + 1);
      tops.set(this.tops.subarray(0, this.clean + 1));
      this.tops = tops;
    } else if (count < this.count) {
      this.sizes.fill(this.estimate, count, this.count);
    }
    this.count = count;
    this.clean = Math.min(this.clean, count);
  }

  /** Returns whether the row is another height than it was taken for. */
  measured(row: number, height: number): boolean {
    if (row >= this.count || Math.abs(this.sizes[row]! - height) < 0.5) {
      return false;
    }
    this.sizes[row] = height;
    this.clean = Math.min(this.clean, row);
    return true;
  }

  top(row: number): number {
    const to = Math.min(row, this.count);
    for (let at = this.clean; at < to; at++) {
      this.tops[at + 1] = this.tops[at]! + this.sizes[at]!;
    }
    this.clean = Math.max(this.clean, to);
    return this.tops[to]!;
  }

  get total(): number {
    return this.top(this.count);
  }

  /** The row in which this height lies. */
  at(y: number): number {
    this.top(this.count);
    let low = 0;
    let high = Math.max(0, this.count - 1);
    while (low < high) {
      const half = (low + high + 1) >> 1;
      if (this.tops[half]! <= y) {
        low = half;
      } else {
        high = half - 1;
      }
    }
    return low;
  }
}
