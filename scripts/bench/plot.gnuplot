# SPDX-License-Identifier: GPL-2.0
# ranges.dat: "NUMBER-OF-RANGES INSTRUCTIONS"; operations.dat: "NAME RATIO POSTED-RATIO"

single = real(system("awk '$1 == 1 { print $2 }' ranges.dat"))
# The ratio of its mean over 1024 ranges to its fault in one
$posted << EOD
1024 3.112
EOD
set style fill solid 0.8 border -1
set grid ytics

set terminal svg size 800,500 background "white"

set output "ranges.svg"
set title "4 KiB fault in a DMABUF of one-page ranges, mean over all of them"
set xlabel "ranges"
set ylabel "instructions, relative to one range"
set logscale x 2
set key top left
set xrange [1:16384]
set yrange [0.9:3.5]
set style data linespoints
plot "ranges.dat" using 1:($2 / single) title "series" lw 2 pt 7, \
	1.10 title "target: 1.10" lc "gray" dt 2 lw 2 with lines, \
	$posted using 1:2 title "posted v4" pt 5 ps 1.5 with points

set output "operations.svg"
set title "Instructions of an operation, relative to the base kernel"
unset logscale x
unset xlabel
set ylabel "ratio to the base"
set xrange [*:*]
set yrange [0:*]
set key top right
set style data histogram
set style histogram clustered gap 1
set xtics rotate by 25 right noenhanced
set bmargin 6
plot "operations.dat" using 2:xtic(1) title "series", \
	"" using 3 title "posted v4", 1 title "base" lc "black" lw 2 with lines
