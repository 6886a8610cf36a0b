"""Words and sentence templates of the course's little language (`course_utils.language`).

A template is a line of symbols separated by spaces:

* a plain word stands for itself; `(walked|ran)` offers alternatives;
* `{who}` is a slot: `language.SLOTS` says which words fit, given what the story has said so far;
* `?holding` is a guard: the template continues from here only if `language.GUARDS` says yes.

Every slot depends only on words already on the page, so the probability of the next word is known.
"""

WOMEN = """Ada Alma Anna Bella Clara Cora Daisy Dora Edith Elena Ella Emma Esther Eva Fiona Freya Grace
Hanna Helen Ida Ines Iris Ivy Jane Julia Kate Lena Lily Lucy Maria Martha Mary Maya Mira Nadia Nina Nora
Olga Olive Petra Rosa Ruth Sara Sofia Stella Tess Vera Wanda Yara Zoe""".split()

MEN = """Adam Alan Amos Anton Arthur Basil Ben Boris Carl David Diego Edgar Elias Emil Felix Frank Fred
George Gus Hans Harry Henry Hugo Igor Ivan Jack Jacob James John Jonas Karl Leo Liam Louis Lukas Marco Max
Milo Nico Noah Omar Oscar Otto Paul Pedro Peter Ralph Sam Simon Tom""".split()

PLACES = """attic bakery barn basement bedroom boathouse cabin camp canyon castle cave cellar chapel church
cottage courtyard dairy desert farmhouse field forest garage garden greenhouse hall harbour hospital hotel
hut inn jungle kitchen laundry library lighthouse market meadow mill mine museum nursery office orchard
palace pantry park pasture pub quarry ruins school shed shop square stable station studio swamp temple
theatre tower town tunnel valley vault village vineyard warehouse woods workshop yard""".split()

THINGS = """amulet anchor axe bag ball banner basket bell blanket book bottle bowl box bracelet broom brush
bucket button cage candle cap carpet chain chest clock cloak coat compass crown cup dagger diary doll drum
envelope fan feather flag flask flower flute fork glove goblet guitar hammer harp hat helmet horn jar jug
kettle key kite knife ladder lamp lantern lens letter lute magnet map mask medal mirror mug necklace needle
net notebook oar paddle parcel pen pencil pillow pipe plate pot purse quilt radio ribbon ring rope ruby
saddle scarf shell shield shoe shovel spade spear spoon statue stick stool suitcase sword telescope ticket
torch towel toy trumpet umbrella vase violin wallet wand whistle wreath""".split()

BEASTS = """badger bat bear beaver bee camel cat cow crab crow dog dolphin donkey dove dragon duck
falcon fox frog goat hawk hen hedgehog horse kitten lamb lion lizard mole monkey mouse
parrot pig pigeon pony puppy rabbit rat raven seal sheepdog snake sparrow squirrel swan tiger toad turtle
whale wolf""".split()

HERDS = """badgers bats bears beavers bees camels cats cows crabs crows dogs dolphins donkeys doves
dragons ducks falcons foxes frogs goats hawks hens hedgehogs horses kittens lambs lions lizards moles
monkeys mice parrots pigs pigeons ponies puppies rabbits rats ravens seals sheepdogs snakes sparrows
squirrels swans tigers toads turtles whales wolves""".split()

FOODS = """almonds apples bacon beans berries biscuits bread butter cabbage cake carrots cheese cherries
chestnuts chocolate cream dates eggs figs fish garlic grapes ham honey jam lemons lentils mushrooms noodles
nuts oats olives onions oranges pancakes peaches pears peas pie plums porridge potatoes pudding raisins rice
salad sausages soup spinach stew sugar toast tomatoes turnips walnuts""".split()

MOODS = """afraid angry anxious awake bored brave calm careful cheerful cold confused curious eager excited
grateful grumpy happy homesick hopeful hungry jealous lazy lonely lost merry nervous patient proud puzzled
quiet restless sad shy silent sleepy sorry surprised thirsty tired worried""".split()

COLOURS = """black blue bronze brown golden green grey pink purple red silver turquoise violet
white yellow""".split()

QUALITIES = """big bright broken cheap clean clever crooked dirty dusty famous fancy fine
fragile funny heavy huge large light little long magic muddy narrow new noisy  plain precious pretty
round rusty secret sharp shiny short simple small smooth soft strange thick thin tiny warm wet
wide wooden""".split()

JOBS = """baker barber blacksmith butcher captain carpenter chef clerk cobbler dancer dentist
doctor driver farmer fisher gardener guard hunter judge lawyer mason mayor miller miner musician
nurse painter pilot poet porter potter printer sailor scholar singer soldier tailor teacher weaver
writer""".split()

MANNERS = """bravely carefully cheerfully eagerly gently gladly happily loudly nervously patiently politely
proudly quickly quietly sadly shyly silently slowly softly suddenly warmly""".split()

WEATHERS = """cloudy foggy frosty gloomy icy misty rainy snowy stormy sunny windy""".split()

OPENINGS = """
2 One (morning|evening|afternoon|day|night) , {new} was in the {scene} .
1 One (summer|winter) , {new} came to the {scene} .
1 Once upon a time there was a {job} called {new} who lived in the {scene} .
1 It was a {weather} (morning|evening|afternoon|day|night) and {new} was (alone|waiting|resting|working) in the {scene} .
1 Long ago , {new} the {hisjob} (lived|worked) in the {scene} .
1 There lived a (girl|woman) called {newwoman} , and {his} home was the {scene} .
1 There lived a (boy|man) called {newman} , and {his} home was the {scene} .
1 On a {weather} (morning|evening|day) , {new} came to the {scene} .
1 (Everyone|Nobody) in the {scene} knew {new} the {hisjob} .
1 Last (week|year|spring|autumn) , {new} visited the {scene} .
2 In the {scene} , {new} met {met} .
2 {new} and {friend} were (friends|neighbours|cousins) who (met|played|worked|lived) in the {scene} .
"""  # noqa: E501 (a template is a line)

MIDDLES = """
2 {who} (walked|ran|went|hurried|travelled|wandered) to the {place} .
2 {He} (walked|ran|went|hurried|wandered) to the {place} .
1 Then {he} (left|went) for the {place} .
1 After (lunch|breakfast|dinner|supper) , {who} went to the {place} .
1 {who} had enough of the {here} and (moved|went) to the {place} .
1 {who} looked around the {here} {how} .
1 {He} (stayed|waited|slept|rested|sat) in the {here} for (hours|days|weeks) .
1 {who} (stayed|waited|slept|rested|sat) in the {here} .
1 (Soon|Later|Then|Suddenly) {who} was in the {place} .
1 The road from the {here} to the {place} was {quality} , but {who} knew it well .
1 The {here} was {weather} and {quality} .
1 In the {here} there (was|stood) a {quality} (table|window|door|wall|chair|fireplace) .
1 The (walls|windows|doors|stairs) of the {here} were {quality} .
1 {who} could (see|hear) the {far} from the {here} .
1 {He} could (see|hear) the {far} from here .

3 {who} ?free (found|noticed|took|wanted|bought) a {colour} {thing} .
3 {who} ?free picked up a {quality} {thing} .
2 {He} ?free (found|took|bought|chose) a {colour} {thing} .
1 {He} ?free picked up the {quality} {colour} {thing} .
1 ?free In the {here} , {he} found a {colour} {thing} .
1 ?free Under the (table|bed|bridge|stairs) , {he} found a {quality} {thing} .
1 ?free A {colour} {thing} was lying on the (floor|ground|table) , and {he} took it .
1 {who} ?free made a {quality} {thing} out of (wood|glass|iron|paper|clay|stone) .

3 {who} ?holding put the {drop} down in the {here} .
2 {He} ?holding (left|dropped|hid|forgot) the {drop} in the {here} .
1 {who} ?holding (left|dropped|hid|forgot) the {drop} there .
1 {He} ?holding needed the {drop} no more , so it stayed in the {here} .
2 {who} ?holding carried the {held} to the {place} .
1 {He} ?holding (brought|carried) the {held} to the {place} .
1 {who} ?holding (cleaned|washed|polished|painted|repaired|studied) the {held} {how} .
1 {He} ?holding looked at the {held} and (smiled|laughed|frowned|nodded|sighed) .
1 {He} ?holding kept the {held} close .
1 {who} ?holding still had the {held} .
1 ?carried The {theirs} that {owner} (carried|had) was {itslook} .
1 ?carried Everybody (liked|admired|wanted) the {theirs} of {owner} .
1 {who} ?holding ?two gave the {held} to {taker} .
1 {He} ?holding ?two gave {other} the {handed} .
1 {who} ?holding ?two showed the {held} to {other} .
1 {who} ?two asked {other} for a {quality} {any} .

2 ?lying The {lying} was still in the {its} .
1 ?lying Where was the {lying} ? It was in the {its} .
1 ?lying Nobody (touched|moved|noticed) the {lying} in the {its} .
1 ?lying The {lying} in the {its} was {itslook} .
1 {who} ?lying remembered that the {lying} was in the {its} .
1 {He} ?lying (went|walked|ran) back for the {lying} in the {fetch} .
2 {who} ?near picked up the {again} .
1 {He} ?near noticed the {again} again and took it .

2 {who} was {mood} .
2 {He} (was|felt|seemed) {mood} .
1 {He} was {mood} , but not {mood} .
1 {who} felt {mood} and {mood} .
1 {who} (smiled|laughed|cried|sang|danced|whistled|yawned) {how} .
1 {He} (smiled|laughed|cried|sang|danced|whistled|yawned) {how} .
1 {who} washed {his} (hands|face|hair) .
1 {He} closed {his} eyes and dreamed of {food} .
1 {He} lost {his} (shoes|gloves|glasses) in the {here} .
1 {who} looked at {himself} in the water and (smiled|laughed) .
1 {He} talked to {himself} for hours .
1 {who} hurt {his} (foot|hand|knee|nose) in the {here} .
1 {who} thought about {his} (mother|father|brother|sister|grandmother|uncle|aunt) in the {far} .

2 {who} ?nolike liked {like} most of all .
1 {He} ?nolike always wanted to eat {like} .
1 ?nolike The favourite food of {name} was {like} .
2 {who} ?liker ate some {liked} .
1 {He} ?liker needed some food , so {he} ate {liked} .
1 {who} ?liker ordered {liked} at the {far} .
1 {who} ate {food} with {food} .
1 {He} (cooked|tasted|ate|smelled) {food} in the {here} .
1 The smell of {food} filled the {here} .
1 {who} ?jobless worked as a {hisjob} in the {far} .
2 ?job The {worker} (smiled|laughed|nodded|waited|sighed|listened) .
1 ?job The {worker} was {mood} .
1 ?job The {worker} thought about {food} {how} .
1 ?job A good {worker} is never {mood} , {he} (thought|knew) .

2 ?room Then {he} met {met} .
2 ?room {new} (came|walked) into the {here} .
1 ?room A (friend|stranger|neighbour) called {new} was (waiting|working|sleeping) there .
1 ?room {new} the {hisjob} (arrived|appeared) {how} .

1 The {beast} in the {far} was {mood} .
1 The {beasts} in the {far} were {mood} .
1 The {beast} near the {herd} was {mood} .
1 The {beasts} near the {lone} were {mood} .
1 The {beast} that chased the {herd} was {quality} .
1 The {beasts} that chased the {lone} were {quality} .
1 The {beast} behind the {quality} (houses|trees|hills|fences) was {mood} .
1 The {beasts} behind the {quality} (house|tree|hill|fence) were {mood} .
1 The {colour} {beast} was (sleeping|eating|hiding|playing) in the {here} .
1 The {colour} {beasts} were (sleeping|eating|hiding|playing) in the {here} .
1 A {beast} (was|came) running out of the {here} .
1 (Two|Three|Four|Five|Six|Seven|Many|Some) {beasts} were (sleeping|hiding|waiting) in the {here} .
1 {who} saw (two|three|four|five|six|seven|many) {herd} near the {here} .
1 {who} (saw|heard|fed|chased) a {lone} near the {far} .
1 {He} feared the {herd} .
1 {He} had a {quality} {lone} at home .
1 The {beast} of {name} was {quality} .

1 It was (raining|snowing) in the {far} .
1 It was {weather} in the {here} .
1 The (sun|moon) was {quality} over the {far} .
1 The (wind|rain|river|sea) was (cold|loud|quiet|strong) that (day|night|evening) .
1 (Night|Evening|Morning|Summer|Winter) came to the {here} .
1 (Hours|Days|Weeks|Years) passed in the {here} .

2 " I am {mood} , " said {who} .
1 " I am {mood} ! " {he} (cried|shouted|whispered) .
1 " We are {mood} , " said {who} {how} .
1 " The {beasts} are {mood} , " said {who} .
1 " The {beast} is {mood} , " said {who} .
1 " The {beasts} near the {lone} are {quality} , " {he} said .
1 " Look at the {herd} in the {far} ! " (cried|shouted) {who} .
1 " I want to eat {food} , " said {who} .
1 " Let us go to the {far} , " {he} said {how} .
1 " What a {quality} (day|night|place|story) ! " {he} (cried|said|thought) .
1 " My (mother|father|brother|sister|grandmother|uncle|aunt) lives in the {far} , " {he} said .
2 ?two " Good (morning|evening|day|night) , {hail} , " said {speaker} .
1 ?two " Come with me , {hail} , " said {speaker} {how} .
1 ?two " Are you {mood} , {hail} ? " asked {speaker} .
1 ?two " Thank you , {hail} ! " {speaker} (cried|said|whispered) .
1 ?two " Please help me , {hail} , " {speaker} said {how} .
2 ?lying " Where is the {lying} ? " asked {who} . " It is in the {its} , " said a (child|stranger|voice|friend) .
1 ?lying " Do not forget the {lying} in the {its} , " said {who} .
1 ?lying " The {lying} is in the {its} , " {he} (said|thought|whispered) .
1 " I (have|need) a {colour} {any} , " said {who} .
1 ?carried " This {theirs} is mine , " said {owner} {how} .

1 {who} ?two and {partner} (walked|ran|went) to the {together} {how} .
1 {who} ?two and {partner} were {mood} .
1 {who} ?two and {partner} (laughed|danced|sang|talked|waited) in the {here} .
1 ?two {They} were {mood} .
1 ?two {They} were (friends|neighbours) now .
1 ?two {They} talked about {food} and {herd} {how} .
1 {who} ?two (helped|followed|hugged|thanked|called|loved|missed) {other} .
1 {He} ?two (helped|followed|hugged|thanked|called) {other} {how} .
1 {who} ?two told {other} a {quality} story about a {lone} .
1 {who} ?two asked {other} about the {far} .
1 {who} ?two was (taller|older|younger|faster|stronger) than {other} .
1 {who} (read|wrote) a {quality} story about (two|three|four|five) {herd} .
1 {He} counted the {herd} in the {far} : one , two , three .
1 {He} counted the {herd} in the {far} : one , two , three , four , five .
1 {who} learned to (sing|dance|swim|read|write|cook|paint) in the {here} .
1 {He} could (sing|dance|swim|read|write|cook|paint) very well .
1 If it is {weather} , {he} always stays in the {here} .
1 When it was {weather} , {who} always went to the {place} .
"""

CLOSINGS = """
3 And that was the end of the {quality} (day|story|adventure|journey) . ¶
2 At last , {who} went home and fell asleep . ¶
2 At last , {he} was {mood} again . ¶
2 From that day on , {who} was never {mood} again . ¶
1 So {who} stayed in the {here} for ever . ¶
1 ?lying In the end , the {lying} stayed in the {its} for ever . ¶
1 ?two And so {they} lived happily ever after . ¶
"""
