"""English prose, written for this benchmark, from which prompts are cut. Several subjects, so that no two prompts of
a run share more than a word or two at their start."""

PASSAGES: tuple[str, ...] = (
    """The lighthouse at the end of the spit had not been manned for forty years, yet somebody still climbed the stairs
every evening to look at the weather. In autumn the wind came straight off the water and carried sand into the
fields, where it settled between the rows of cabbages and made the farmers swear. Children were told that the
lamp would light by itself if a ship was in danger. None of them had seen it happen, but all of them knew an
uncle who had. When the harbour board decided to sell the tower, forty people signed a letter that said it
belonged to the fog, and that nobody can buy what belongs to the fog. The board replied that fog pays no taxes.
In the end a retired schoolteacher bought it for the price of a used car, painted the door green, and put a
telescope where the lamp had been.""",
    """A sourdough starter is a small, badly supervised zoo. Flour brings the animals in, water wakes them up, and the
baker's only real power is to decide who eats next. Yeast prefers a warm kitchen and gives off the gas that
lifts the dough; the bacteria like it cooler and give off the acids that make the crust taste of something. If
you feed the jar too rarely, the acids win and the bread turns flat and sharp. If you feed it too often,
everyone is full and nothing happens. Most recipes give times, but a clock knows nothing about the temperature
of your cupboard. It is better to watch the surface: when the dome begins to sink and the bubbles at the glass
are as large as peas, the mixture is ready. Keep a spoonful back, give it fresh flour, and apologise for the
interruption.""",
    """Trains between the two capitals used to take nineteen hours, of which three were spent at the border, where the
carriages were lifted one by one and set down on wheels of another width. Passengers stayed inside, drinking
tea, while the whole compartment rose slowly past the windows of the workshop. The mechanics were proud of their
work and waved. Later a gauge-changing axle was invented that slides along its shaft as the train rolls through
a short tunnel at walking speed, and the three hours became eleven minutes. Engineers considered this a triumph.
Travellers, when they were asked, said that they missed the tea. The railway's answer was practical: it kept the
old workshop as a restaurant, with a single carriage hoisted above the tables, and people now pay to have lunch
in the air.""",
    """To understand how a compiler chooses registers, imagine a theatre with sixteen chairs and a play with two
hundred parts. Most characters are on stage only briefly, so a chair can serve many of them, one after another.
The stage manager draws a line between any two characters who must sit at the same time, and then looks for a
way to give chairs to all, so that no line joins two people with the same chair. Mathematicians call this
colouring a graph and have proved that it is hard. Stage managers call it Tuesday. When the chairs run out,
somebody has to wait in the wings: the value is stored in memory and fetched back before its next line. The art
is in choosing whom to send away. A character who speaks only once, at the end, will hardly be missed; the one
who talks inside the inner loop had better keep a seat.""",
    """Before dawn the market belongs to the people who carry things. Crates of lemons go past at shoulder height, then
ice, then a man with eleven chairs tied to his back. Prices are not written anywhere yet; they are being agreed
in the corner by three women who have sold fish longer than the building has had a roof. By seven the first
cooks arrive and squeeze everything. By nine the tourists come and photograph the squid. Around noon, when the
sun reaches the far wall, the cats take over the aisles, and whoever still has tomatoes sells them by the box.
The cleaning crew hoses down the stones at two and finds, every day without exception, one shoe. Nobody has ever
come back to ask for it. The foreman keeps them on a shelf, sorted by size, in case the owners are only late.""",
    """Measuring the age of a glacier begins with a hollow drill and a great deal of patience. The core comes up in
pieces as long as an arm, each with a number, and the layers in it can be counted like the rings of a tree: pale
where summer melted the surface, dark where winter dust settled on the snow. Bubbles trapped between the
crystals still hold the air of the year in which they closed. Deep down, the weight above has squeezed the
layers so thin that counting fails, and other clocks are needed, such as ash from a known eruption or the slow
decay of certain atoms. A mistake of a few decades is normal and is written on the label. What makes the work
worth the cold is the continuity: nowhere else has anyone kept a diary for a hundred thousand years without
skipping a winter.""",
    """Dear committee, thank you for the invitation to explain why the new bridge sways. It does so because four
hundred people crossed it at once on the opening day, and because people, without meaning to, fall into step
with a floor that moves beneath them. A small sideways motion makes each walker place the feet a little wider;
the wider step pushes the deck a little further; and so the crowd and the bridge teach each other to dance.
Nothing is about to break. The stresses measured were a tenth of what the steel can bear. Still, nobody enjoys
seasickness above a river, and I recommend dampers: heavy weights on springs, tuned to the same rhythm and hung
out of sight below the deck, which start moving when the bridge does and turn its motion into a little heat.
They cost less than the opening ceremony.""",
    """Learning the violin as an adult is an exercise in being the worst person in the room, and in finding that the
room is kinder than expected. The left hand must learn distances that no mark on the instrument shows. The right
hand must learn to do less, which takes longer. For the first year the neighbours are the real audience, and it
is polite to bring them cake. In the second year something odd occurs: a note rings, the other strings answer it
by themselves, and for a moment the box of wood under your chin is louder than you are. Teachers call it
resonance and say that it was always there, waiting for the finger to be in the right place. After that you
cannot stop. You may never play in public, but you will hear, in every orchestra, the second row working as hard
as you do.""",
)
