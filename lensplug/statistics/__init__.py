"""Statistics over the examples of a study: streamed, resampled, compared.

Every function and class takes `values [example row]`: an example has one number for each row of a result's table (a
head, a layer and class), NaN where it has none. Examples carry the name of their group (species, prompt, checkpoint)
and of their cluster: several questions about one picture are one cluster, and are drawn together.

    moments, bootstrap = statistics.Moments(), statistics.Bootstrap(seed=0)
    for values, groups, clusters in chunks:                # in any order; nothing of a chunk is held
        moments.add(values, groups)
        bootstrap.add(values, groups, clusters)
    moments.mean, moments.standard_error                   # [group row], in the order of moments.groups
    bootstrap.interval(confidence=0.95)                    # .low, .high [group row]

    statistics.paired_differences(a, b, a_pairs=names, b_pairs=names)  # the same pictures under two prompts
    statistics.group_differences(a, b)                                 # other pictures
    statistics.adjusted_p_values(p_values, "benjamini_hochberg")       # of p-values from elsewhere

Nothing here depends on the time, the process or what ran before: the same seed gives the same numbers.
"""

from lensplug.statistics.bootstrap import Bootstrap as Bootstrap
from lensplug.statistics.bootstrap import Interval as Interval
from lensplug.statistics.corrections import adjusted_p_values as adjusted_p_values
from lensplug.statistics.differences import Differences as Differences
from lensplug.statistics.group_differences import group_differences as group_differences
from lensplug.statistics.moments import Moments as Moments
from lensplug.statistics.paired_differences import paired_differences as paired_differences
