"""What is said and what is written: words, and short phrases made of them."""

from __future__ import annotations

WORDS = (
    "apple river mountain yellow doctor window guitar planet coffee silver dragon summer winter castle bridge forest "
    "market hunter candle mirror rabbit tiger monkey camera engine rocket bottle basket hammer ladder needle pillow "
    "garden island jungle valley desert ocean thunder shadow whisper crystal diamond emerald orange purple violet "
    "scarlet seven eleven twelve twenty hundred thousand million quarter morning evening midnight breakfast dinner "
    "supper kitchen bedroom teacher student lawyer farmer soldier captain pirate wizard princess knight turtle "
    "elephant giraffe dolphin penguin spider butterfly banana cherry lemon tomato potato carrot pepper onion cabbage "
    "pumpkin violin piano trumpet drum flute harp hospital library museum theater station airport harbor factory "
    "village city bicycle tractor airplane submarine helicopter balloon"
).split()

PHRASES = (
    "open the window|a silver bridge|the old castle|hot coffee please|seven red apples|a quiet evening|the last train|"
    "rain in the forest|a purple balloon|call the doctor|fresh lemon juice|the broken mirror|winter is coming|"
    "a bottle of water|twelve black horses|close the kitchen door|the teacher smiles|turn left here|my brother sings|"
    "a letter from home|snow on the mountain|the pirate laughs|light a candle|eleven small boats|the garden gate|"
    "wait for the bus|a basket of onions|the captain sleeps|play the piano|cross the desert"
).split("|")
