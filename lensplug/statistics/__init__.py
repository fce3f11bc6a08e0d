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

Nothing here depends on the time, the process or what ran before: the same seed gives the same numbers.
"""

from lensplug.statistics.bootstrap import Bootstrap as Bootstrap
from lensplug.statistics.bootstrap import Interval as Interval
from lensplug.statistics.moments import Moments as Moments
