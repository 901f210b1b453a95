"""What the benchmark makes of its measurements."""

import unittest

from tools.benchmark.planning import rows
from tools.benchmark.table import Table, median_ratio, percentile


class Figures(unittest.TestCase):
    def test_percentiles_are_measured_values(self):
        values = list(range(1000, 0, -1))
        self.assertEqual((percentile(values, 50), percentile(values, 99), percentile(values, 100)), (500, 990, 1000))
        self.assertEqual((percentile([7], 99), percentile([1, 2], 50)), (7, 1))

    def test_a_ratio_is_of_what_was_measured_together(self):
        # The machine was three times slower in the second round: it says nothing about either side.
        self.assertEqual(median_ratio([(1, 2), (3, 6), (1, 2)]), 0.5)

    def test_the_table_lines_up(self):
        table = Table()
        table.heading("part one")
        table.compare("whole", [(2.0, 4.0), (3.0, 4.0), (9.0, 4.0)], goal="at most 1.00")
        table.add("size", "1.5 MB")
        lines = table.text().splitlines()
        self.assertEqual(lines[1:3], ["", "part one"])
        self.assertEqual(lines[3].split(), ["whole", "3.0", "s", "4.0", "s", "0.75", "at", "most", "1.00"])
        self.assertEqual(lines[0].index("Kopsline") + len("Kopsline"), lines[3].index("3.0 s") + len("3.0 s"))
        self.assertEqual(lines[4].split(), ["size", "1.5", "MB"])

    def test_the_simulators_table_is_read(self):
        text = "  nodes     pods     a decision   memory\n   1000    10012        2.89 ms    37 kB\n"
        self.assertEqual(rows(text), [{"nodes": "1000", "pods": "10012", "a decision": "2.89 ms", "memory": "37 kB"}])


if __name__ == "__main__":
    unittest.main()
